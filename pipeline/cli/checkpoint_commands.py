"""`lemon inspect`, `check`, `diff`, `reshard` and `export`."""

import argparse
import json

import pipeline
from pipeline.cli.arguments import (
    CHECKPOINT,
    DTYPES,
    Commands,
    Handler,
    LayoutsHelp,
    add_hash,
    add_json,
    add_layout,
    add_part,
    add_source_config,
    add_workers,
    path,
    selected_layout,
)
from pipeline.cli.output import console
from pipeline.records.processes import WORKERS


def add_parsers(commands: Commands) -> None:
    _add_inspect(commands)
    _add_check(commands)
    _add_diff(commands)
    _add_reshard(commands)
    _add_export(commands)


def _command(commands: Commands, name: str, text: str, handler: Handler) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(handler=handler)
    return command


def _checkpoint_command(commands: Commands, name: str, text: str, handler: Handler) -> argparse.ArgumentParser:
    """A command that reads one checkpoint."""
    command = _command(commands, name, text, handler)
    command.add_argument("source", type=path, metavar="DIR", help=CHECKPOINT)
    return command


def _add_inspect(commands: Commands) -> None:
    text = "say what a checkpoint is: layout, model, optimizer, where it came from; its numbers are not read"
    command = _checkpoint_command(commands, "inspect", text, _inspect)
    add_json(command, "the facts")
    command.add_argument(
        "--tensors", action="store_true", help="list every tensor with its shape, type and optimizer group"
    )


def _add_check(commands: Commands) -> None:
    text = (
        "hash every file of a checkpoint against its manifest; without a manifest, see whether its files agree; "
        "exit code 2 when one is damaged"
    )
    command = _checkpoint_command(commands, "check", text, _check)
    add_workers(command, "files that are hashed at the same time (default: one more than the CPUs)")


def _add_diff(commands: Commands) -> None:
    text = (
        "compare two checkpoints of any layout number by number: weights, moments, steps, hyper-parameters; "
        "exit code 1 when anything differs"
    )
    command = _command(commands, "diff", text, _diff)
    command.add_argument("a", type=path, metavar="A", help=CHECKPOINT)
    command.add_argument("b", type=path, metavar="B", help="another, in any layout, ZeRO stage and world size")
    add_json(command, "the differences")
    command.add_argument(
        "--weights-only", action="store_true", help="leave the optimizer out (Hugging Face folders hold none)"
    )


def _add_reshard(commands: Commands) -> None:
    text = "write a checkpoint in another layout, ZeRO stage or world size, moments and steps included"
    command = _checkpoint_command(commands, "reshard", text, _reshard)
    command.formatter_class = LayoutsHelp
    command.add_argument("--out", required=True, type=path, help="the checkpoint folder to create")
    add_source_config(
        command, "the model's config.json, where Hugging Face files are read or written and it lies elsewhere"
    )
    add_layout(command)
    add_workers(command)
    add_hash(command)
    add_part(command, "reshard DIR --out OUT")


def _add_export(commands: Commands) -> None:
    text = "write a checkpoint as a Hugging Face folder: safetensors, config, tokenizer, a model card with what it cost"
    command = _checkpoint_command(commands, "export", text, _export)
    command.add_argument("--out", required=True, type=path, metavar="HF_DIR", help="the folder to create")
    command.add_argument("--dtype", default="float32", choices=DTYPES, help="of the stored weights (default float32)")
    add_source_config(command)
    add_hash(command)


def _inspect(options: argparse.Namespace) -> None:
    from pipeline.checkpoints import describe

    description = pipeline.describe(options.source, tensors=options.tensors)
    if options.json:
        print(json.dumps(description.as_json(), indent=2, default=str))
    else:
        describe.show(description, console())


def _check(options: argparse.Namespace) -> None:
    from pipeline.checkpoints import integrity

    print(integrity.check(options.source, options.workers))


def _diff(options: argparse.Namespace) -> int:
    from pipeline.checkpoints import diff

    difference = diff.compare(options.a, options.b, options.weights_only)
    if options.json:
        print(json.dumps(difference.as_json(), indent=2, default=str))
    else:
        diff.show(difference, console())
    return 0 if difference.equal else 1


def _reshard(options: argparse.Namespace) -> None:
    where = options.source, options.out, selected_layout(options)
    how = {key: getattr(options, key) for key in ("source_config", "workers")} | {"file_hash": options.algorithm}
    if options.part is None:
        pipeline.reshard(*where, **how)
    else:
        pipeline.reshard_part(options.part, *where, **how)


def _export(options: argparse.Namespace) -> None:
    from pipeline.export import folder

    folder.export_checkpoint(
        options.source, options.out, options.dtype, options.source_config, WORKERS, options.algorithm
    )

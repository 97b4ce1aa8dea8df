"""`lemon inspect`, `check`, `diff`, `reshard` and `export`."""

import argparse
import json
from pathlib import Path

import pipeline
from pipeline.cli.arguments import (
    CHECKPOINT,
    DTYPES,
    Commands,
    LayoutsHelp,
    add_json,
    add_layout,
    add_source_config,
    add_workers,
    positive_integer,
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


def _add_inspect(commands: Commands) -> None:
    text = "say what a checkpoint is: layout, model, optimizer, where it came from; its numbers are not read"
    command = commands.add_parser("inspect", help=text, description=text)
    command.add_argument("source", type=Path, metavar="DIR", help=CHECKPOINT)
    add_json(command, "the facts")
    command.add_argument(
        "--tensors", action="store_true", help="list every tensor with its shape, type and optimizer group"
    )
    command.set_defaults(handler=_inspect)


def _add_check(commands: Commands) -> None:
    text = (
        "hash every file of a checkpoint against its manifest; without a manifest, see whether its files agree; "
        "exit code 2 when one is damaged"
    )
    command = commands.add_parser("check", help=text, description=text)
    command.add_argument("source", type=Path, metavar="DIR", help=CHECKPOINT)
    command.add_argument(
        "--workers",
        type=positive_integer,
        default=WORKERS,
        help="files that are hashed at the same time (default: one more than the CPUs)",
    )
    command.set_defaults(handler=_check)


def _add_diff(commands: Commands) -> None:
    text = (
        "compare two checkpoints of any layout number by number: weights, moments, steps, hyper-parameters; "
        "exit code 1 when anything differs"
    )
    command = commands.add_parser("diff", help=text, description=text)
    command.add_argument("a", type=Path, metavar="A", help=CHECKPOINT)
    command.add_argument("b", type=Path, metavar="B", help="another, in any layout, ZeRO stage and world size")
    add_json(command, "the differences")
    command.add_argument(
        "--weights-only", action="store_true", help="leave the optimizer out (Hugging Face folders hold none)"
    )
    command.set_defaults(handler=_diff)


def _add_reshard(commands: Commands) -> None:
    text = "write a checkpoint in another layout, ZeRO stage or world size, moments and steps included"
    command = commands.add_parser("reshard", help=text, description=text, formatter_class=LayoutsHelp)
    command.add_argument("source", type=Path, metavar="DIR", help=CHECKPOINT)
    command.add_argument("--out", required=True, type=Path, help="the checkpoint folder to create")
    command.add_argument(
        "--source-config",
        type=Path,
        help="the model's config.json, where Hugging Face files are read or written and it lies elsewhere",
    )
    add_layout(command)
    add_workers(command)
    command.set_defaults(handler=_reshard)


def _add_export(commands: Commands) -> None:
    text = "write a checkpoint as a Hugging Face folder: safetensors, config, tokenizer, a model card with what it cost"
    command = commands.add_parser("export", help=text, description=text)
    command.add_argument("source", type=Path, metavar="DIR", help=CHECKPOINT)
    command.add_argument("--out", required=True, type=Path, metavar="HF_DIR", help="the folder to create")
    command.add_argument("--dtype", default="float32", choices=DTYPES, help="of the stored weights (default float32)")
    add_source_config(command)
    command.set_defaults(handler=_export)


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
    pipeline.reshard(
        options.source,
        options.out,
        selected_layout(options),
        source_config=options.source_config,
        workers=options.workers,
    )


def _export(options: argparse.Namespace) -> None:
    from pipeline.export import folder

    folder.export_checkpoint(options.source, options.out, options.dtype, options.source_config, WORKERS)

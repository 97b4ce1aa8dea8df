"""`lemon inspect`, `check`, `diff`, `reshard` and `export`."""

import argparse
import json
from typing import TYPE_CHECKING

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
    positive_number,
    selected_layout,
)
from pipeline.cli.output import console
from pipeline.errors import UserError
from pipeline.records.processes import WORKERS

if TYPE_CHECKING:
    from pipeline.accounting.device_time import PowerFactors


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
    _add_statements(command)


def _add_statements(command: argparse.ArgumentParser) -> None:
    """What the model card cannot know by itself."""
    command.add_argument(
        "--base-model",
        metavar="OWNER/NAME",
        help="of the card: the model on the hub that the lineage begins with (default: what its folder says)",
    )
    command.add_argument(
        "--device-power",
        type=positive_number,
        metavar="WATTS",
        help="of the card: what one rank's device draws; with the recorded device time it gives the energy",
    )
    command.add_argument(
        "--pue", type=_pue, metavar="RATIO", help="with --device-power: power of the site over its devices' (default 1)"
    )
    command.add_argument(
        "--carbon-intensity",
        type=positive_number,
        metavar="G_PER_KWH",
        help="with --device-power: grams of CO2 equivalents of a kWh; gives co2_eq_emissions",
    )
    command.add_argument("--location", metavar="PLACE", help="with --carbon-intensity: where the devices stand")


def _pue(text: str) -> float:
    value = positive_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is below 1: a site draws what its devices do, at least")
    return value


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
        options.source,
        options.out,
        options.dtype,
        options.source_config,
        WORKERS,
        options.algorithm,
        folder.Stated(options.base_model, _power_factors(options)),
    )


def _power_factors(options: argparse.Namespace) -> "PowerFactors | None":
    """Raises UserError for a factor without the one that it belongs to."""
    from pipeline.accounting.device_time import PowerFactors

    needs = {"pue": "device_power", "carbon_intensity": "device_power", "location": "carbon_intensity"}
    for name, other in needs.items():
        if getattr(options, name) is not None and getattr(options, other) is None:
            flag, needed = (f"--{each.replace('_', '-')}" for each in (name, other))
            raise UserError(f"{flag}: it says nothing without {needed}; add that, or leave it out")
    if options.device_power is None:
        return None
    return PowerFactors(options.device_power, options.pue or 1.0, options.carbon_intensity, options.location)

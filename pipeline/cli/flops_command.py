"""`lemon flops`."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.arguments import Commands, add_json, path, positive_integer
from pipeline.cli.imports import imports
from pipeline.cli.output import console
from pipeline.cli.run_commands import load
from pipeline.durations import Duration
from pipeline.errors import UserError
from pipeline.training.launcher import Nodes

if TYPE_CHECKING:
    from pipeline.accounting.estimate import Estimate

TEXT = (
    "count the FLOPs of a run's config, or of a Hugging Face config.json: of a sample, a token, every stage, the whole "
    "run; device-hours at a stated MFU; memory and disk; nothing is written, no model is built"
)
LEAST = 1e-9
"""Of a share, and of TFLOP/s: what is less is a typing error."""
MOST_TFLOPS = 1e6


def add_parsers(commands: Commands) -> None:
    command = commands.add_parser("flops", help=TEXT, description=TEXT)
    command.set_defaults(handler=_flops)
    command.add_argument(
        "config", type=path, metavar="CONFIG", help="a YAML config, a Hugging Face config.json, or a folder with one"
    )
    command.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of a YAML config")
    command.add_argument(
        "--head-positions",
        type=_number(1.0),
        metavar="SHARE",
        help="count a masked model's head at this share of a sequence's positions, 1.0: at all, as dense papers count "
        "(default: those that it predicts in training, data.mask; 0.15 of a config.json)",
    )
    _add_of_model(command)
    command.add_argument("--nodes", type=positive_integer, help="of a YAML config: nodes that would train (default 1)")
    add_devices(command)
    add_json(command, "the estimate")


def add_devices(command: argparse.ArgumentParser) -> None:
    """What device-hours are counted by."""
    command.add_argument("--mfu", type=_number(1.0), metavar="SHARE", help="say device-hours at this MFU, such as 0.4")
    command.add_argument(
        "--device-tflops", type=_number(MOST_TFLOPS), metavar="TFLOP/S", help="peak of a device, such as 312"
    )
    command.add_argument(
        "--device",
        metavar="NAME",
        help="the device whose data sheet says its peak, such as A100 (of a config.json: bf16)",
    )


def _add_of_model(command: argparse.ArgumentParser) -> None:
    """What a YAML config says by itself."""
    command.add_argument(
        "--sequence-length", type=positive_integer, metavar="N", help="of a config.json of a text model: its tokens"
    )
    command.add_argument(
        "--activation-checkpointing",
        type=positive_integer,
        metavar="N",
        help="of a config.json: of every so many layers the first is computed again (1: all; default: none)",
    )
    command.add_argument(
        "--train-for", type=_length, metavar="LENGTH", help="of a config.json: a training of '1e9 tokens' or samples"
    )


def _number(most: float) -> Callable[[str], float]:
    """A number above 0, and at most `most`."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not LEAST <= number <= most:  # nan is neither
            raise argparse.ArgumentTypeError(f"'{text}' is no number above 0 and at most {most:g}")
        return number

    return read


def _length(text: str) -> Duration:
    try:
        found = Duration.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if found.amount <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no training; choose more than 0")
    return found


def _flops(options: argparse.Namespace) -> None:
    is_run = Path(options.config).suffix in (".yaml", ".yml")
    found = _of_run(options) if is_run else _of_model(options)
    with imports():
        from pipeline.runs import flops_tables

    if options.json:
        print(found.model_dump_json(indent=2))
    else:
        flops_tables.show(found, console())


OF_A_MODEL = {
    "sequence_length": "data.block=N",
    "activation_checkpointing": "stages.NAME.activation_checkpointing=N",
    "train_for": "stages.NAME.schedule.steps='N steps'",
}
"""Options of a config.json, and the keys that say the same of a run."""


def _of_run(options: argparse.Namespace) -> "Estimate":
    for option, key in OF_A_MODEL.items():
        if getattr(options, option) is not None:
            name = option.replace("_", "-")
            raise UserError(f"--{name} is of a config.json; a run's config says it by its key: {key}")
    loaded = load(options)  # first: it tells DeepSpeed which accelerator to take
    with imports():
        from pipeline.runs import flops_of_run
        from pipeline.runs.device_hours import Devices
        from pipeline.runs.stage_needs import Cluster

    devices = Devices.asked(options.mfu, options.device_tflops, options.device)
    cluster = Cluster.of(loaded, Nodes(options.nodes or 1))
    return flops_of_run.of_run(options.config, loaded, cluster, options.head_positions, devices)


def _of_model(options: argparse.Namespace) -> "Estimate":
    if options.overrides or options.nodes:
        given = options.overrides[0] if options.overrides else f"--nodes {options.nodes}"
        raise UserError(f"{given}: goes with a run's YAML config, and {options.config} is none; leave it out")
    with imports():
        from pipeline.runs import flops_of_model
        from pipeline.runs.device_hours import Devices

    asked = flops_of_model.Asked(
        options.sequence_length,
        options.head_positions,
        options.activation_checkpointing or 0,
        options.train_for,
        Devices.asked(options.mfu, options.device_tflops, options.device),
    )
    return flops_of_model.of_model(options.config, asked)

"""`lemon pilot`."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from typing import TYPE_CHECKING

from rich.table import Table

from pipeline.cli.arguments import Commands, add_json, add_local_rank, path
from pipeline.cli.imports import imports
from pipeline.cli.output import console
from pipeline.cli.run_commands import add_nodes, do, load, start_of
from pipeline.durations import share
from pipeline.training.launcher import Start

if TYPE_CHECKING:
    from pipeline.runs.pilot import Mixing

TEXT = (
    "measure by two short runs how long a grown model's loss takes to mix with that of one trained at full size, and "
    "say the latest point of growth that still mixes before the decay"
)


def add_parsers(commands: Commands) -> None:
    command = commands.add_parser("pilot", help=TEXT, description=TEXT)
    command.set_defaults(handler=_pilot)
    command.add_argument(
        "config", type=path, metavar="CONFIG", help="a YAML config with a growth within one schedule (continue: true)"
    )
    command.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, as of lemon run")
    command.add_argument("--stage", help="which expansion (default: the only one within one schedule)")
    command.add_argument(
        "--grow-at", type=_share, default="10 %", metavar="SHARE", help="of the horizon, where the pilot grows (10 %%)"
    )
    command.add_argument(
        "--length", type=_share, default="20 %", metavar="SHARE", help="of the horizon, trained behind that (20 %%)"
    )
    command.add_argument(
        "--within",
        type=_share,
        default="1 %",
        metavar="SHARE",
        help="how far above the full-size model's loss counts as mixed (1 %%)",
    )
    add_nodes(command)
    add_json(command, "what was measured")
    add_local_rank(command)


def _share(text: str) -> Fraction:
    """A share as a config writes it."""
    try:
        return share(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _pilot(options: argparse.Namespace) -> None:
    start = start_of(options)
    do(start, lambda: _measure(options, start))


def _measure(options: argparse.Namespace, start: Start) -> None:
    with imports():
        from pipeline.runs import pilot

    wanted = pilot.Wanted(options.stage, options.grow_at, options.length, float(options.within))
    with _told_on_stderr() if options.json else nullcontext():
        found = pilot.measure(load(options), wanted, start)
    if found and options.json:
        print(found.model_dump_json(indent=2))
    elif found:
        show(found)


@contextmanager
def _told_on_stderr() -> Iterator[None]:
    """What this process and its workers print meanwhile goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def show(found: "Mixing") -> None:
    """Print the losses side by side, and what they say."""
    table = Table("step behind the growth", "grown", "full size", "gap", box=None, pad_edge=False)
    for point in found.points:
        table.add_row(f"{point.step:,}", f"{point.grown:.4f}", f"{point.full:.4f}", f"{100 * point.gap:+.2f} %")
    output = console()
    output.print(table)
    for line in _words(found):
        output.print(line, markup=False, highlight=False, soft_wrap=True)


def _words(found: "Mixing") -> Iterator[str]:
    within = f"{100 * found.within:.4g} %"
    if found.steps is None:
        yield f"not mixed: still more than {within} apart at the end; make the pilot longer (--length), or grow earlier"
        return
    if not found.moved:
        yield f"the loss at full size has moved by less than {within}, which tells nothing; "
        yield "make the pilot longer (--length)"
        return
    yield f"mixed within {within} behind {found.steps:,} steps of the large model"
    left = f"{found.horizon:,} steps with a decay over the last {found.decay:,}"
    if found.latest_percent is None:
        yield f"of {left} nothing is left for a growth that mixes; choose a longer horizon"
    else:
        yield f"of {left}: grow at {found.latest_percent} % of the horizon at the latest"

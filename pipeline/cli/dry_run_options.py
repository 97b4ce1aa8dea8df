"""`lemon run --dry-run`."""

import argparse
import json
import logging

from pipeline.cli.arguments import add_json
from pipeline.cli.imports import imports
from pipeline.cli.output import LOGGER, console
from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.training.launcher import Start


def add(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything and print the plan for the cluster that the options describe: schedule, FLOPs, memory, "
        "data, disk, launch commands; nothing is written, no GPU is needed",
    )
    add_json(command, "the plan of --dry-run")


def require_fitting(options: argparse.Namespace) -> None:
    """Raises UserError for --json without --dry-run: a run prints no JSON."""
    if options.json and not options.dry_run:
        raise UserError("--json goes with --dry-run; a run leaves report.json in its folder")


def show(config: Config, start: Start, options: argparse.Namespace) -> None:
    """Print it once, whatever number of processes a launcher has started."""
    with imports():
        from pipeline.runs import dry_run, dry_run_tables

    planned = dry_run.dry_run(config, start, [str(options.config), *options.overrides])
    if not start.first:
        return
    if options.json:
        print(json.dumps(planned.content, indent=2))
    else:
        dry_run_tables.show(planned, console(), verbose=logging.getLogger(LOGGER).isEnabledFor(logging.DEBUG))

"""`lemon study`."""

import argparse
from typing import TYPE_CHECKING

from pipeline.cli.arguments import Commands, add_local_rank, path
from pipeline.cli.flops_command import add_devices
from pipeline.cli.imports import imports
from pipeline.cli.run_commands import add_nodes, do, start_of
from pipeline.records.processes import choose_accelerator
from pipeline.training.launcher import Start

if TYPE_CHECKING:
    from pipeline.studies.schema import Study

TEXT = (
    "compare ways of growing with training from scratch: tune every arm alike, train all of them under several seeds, "
    "say what was saved and with what doubt; finished stages are skipped, an interrupted one resumes"
)


def add_parsers(commands: Commands) -> None:
    command = commands.add_parser("study", help=TEXT, description=TEXT)
    command.set_defaults(handler=_study)
    command.add_argument(
        "config", type=path, metavar="CONFIG", help="a study's YAML, such as configs/studies/bert.yaml"
    )
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="dotted overrides: run.processes=8, folder=/scratch/{name}"
    )
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be run, in which order, its FLOPs and disk; write nothing",
    )
    command.add_argument(
        "--results", action="store_true", help="write the results of what there is by now, and run nothing"
    )
    add_devices(command)
    add_nodes(command)
    add_local_rank(command)


def _study(options: argparse.Namespace) -> None:
    start = start_of(options)
    choose_accelerator()
    study = _load(options)
    if options.dry_run:
        _show_plan(study, start, options)
    elif options.results:
        _show_results(study, options)
    else:
        do(start, lambda: _go(study, start, options))


def _load(options: argparse.Namespace) -> "Study":
    from pipeline import config
    from pipeline.studies.schema import Study

    return config.validated(Study, config.read_tree(options.config, options.overrides), options.config)


def _go(study: "Study", start: Start, options: argparse.Namespace) -> None:
    with imports():
        from pipeline.studies import running

    running.go(study, start)
    if start.first:
        _show_results(study, options)


def _show_plan(study: "Study", start: Start, options: argparse.Namespace) -> None:
    with imports():
        from pipeline.cli.output import console
        from pipeline.runs.device_hours import Devices
        from pipeline.studies import plan_table

    devices = Devices.asked(options.mfu, options.device_tflops, options.device)
    plan_table.show(study, start, console(), devices)


def _show_results(study: "Study", options: argparse.Namespace) -> None:
    with imports():
        from pipeline.studies import findings, page, running

    running.require_as_begun(study)
    found = findings.found(study, [str(options.config), *options.overrides])
    for line in page.summary(found, page.write(found, study.path)):
        print(line)

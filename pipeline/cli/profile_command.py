"""`lemon profile`."""

import argparse
import os
from pathlib import Path

from pipeline.cli.arguments import Commands, add_json, add_local_rank, path, positive_integer
from pipeline.cli.imports import imports
from pipeline.cli.output import console
from pipeline.cli.run_commands import load, only_stage, start_of
from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.records.processes import PARENT
from pipeline.training import launcher, preemption
from pipeline.training.environment import Launched

STEPS = 20
TEXT = (
    "train some steps of a stage and say where the time of a step goes: data, forward, backward, communication, "
    "optimizer, host; speed, MFU, HFU, peak memory; the run's folder stays as it is"
)


def add_parsers(commands: Commands) -> None:
    command = commands.add_parser("profile", help=TEXT, description=TEXT)
    command.set_defaults(handler=_profile)
    command.add_argument(
        "config", type=path, metavar="CONFIG", help="a YAML config, such as configs/quickstart/bert.yaml"
    )
    command.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, as of lemon run")
    command.add_argument("--stage", help="which training stage (default: the only one)")
    command.add_argument(
        "--steps", type=positive_integer, default=STEPS, help=f"steps that are measured (default {STEPS})"
    )
    command.add_argument(
        "--trace",
        type=path,
        metavar="FILE",
        help="write a trace of torch's profiler (two more steps of rank 0; chrome://tracing and Perfetto show it), and "
        "tell the operators that take longest",
    )
    add_json(command, "the budget")
    add_local_rank(command)


def _profile(options: argparse.Namespace) -> None:
    start, loaded = start_of(options), load(options)
    if options.trace:
        _require_writable(options.trace)
    name = options.stage or only_stage(loaded)
    if isinstance(start, Launched):
        _work(loaded, name, options)
    elif start.alone:
        _launch(loaded, name, options)
    else:
        raise UserError(
            f"started on each of {start.count} nodes: lemon profile starts workers on one; have torchrun or srun start "
            "a process for each worker"
        )


def _require_writable(trace: Path) -> None:
    """Raises UserError where a trace could not be written when all is measured."""
    folder = trace.absolute().parent
    if not folder.is_dir():
        raise UserError(f"--trace {trace}: its folder does not exist; make it, or name another")
    if trace.is_dir():
        raise UserError(f"--trace {trace}: is a folder; name a file, such as {trace / 'trace.json'}")
    if not os.access(trace if trace.exists() else folder, os.W_OK):
        raise UserError(f"--trace {trace}: cannot be written; name another")


def _launch(loaded: Config, name: str, options: argparse.Namespace) -> None:
    with imports():
        from pipeline.runs import profile

    arguments = [f"--steps={options.steps}", *(["--json"] if options.json else [])]
    arguments += [f"--trace={options.trace.absolute()}"] if options.trace else []
    with preemption.heard():
        profile.launch(loaded, profile.Wanted(name, options.steps, options.trace), arguments)


def _work(loaded: Config, name: str, options: argparse.Namespace) -> None:
    """Be one of the workers, to its end; rank 0 prints."""
    lock = launcher.become_worker(Path(options.config).parent) if PARENT in os.environ else None
    launcher.take_over_log_level()
    try:
        with imports():
            from pipeline.runs import budget_tables, profile

        found = profile.work(loaded, profile.Wanted(name, options.steps, options.trace))
        if found and options.json:
            print(found.model_dump_json(indent=2), flush=True)
        elif found:
            budget_tables.show(found, console())
        profile.leave()
    except BaseException as error:
        launcher.tell_failure(error)
        raise
    finally:
        del lock

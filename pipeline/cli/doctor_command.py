"""`lemon doctor`."""

import argparse
from pathlib import Path

from pipeline.cli.arguments import Commands, path, positive_integer
from pipeline.records.processes import choose_accelerator


def add_parsers(commands: Commands) -> None:
    text = (
        "examine this machine: versions, devices, limits, the disk of the run folder, bandwidth between processes, and "
        "every ZeRO stage against plain PyTorch; a verdict a line (ok, note, bad), exit code 1 when one is bad"
    )
    command = commands.add_parser("doctor", help=text, description=text)
    command.set_defaults(handler=_doctor)
    command.add_argument("--folder", type=path, default=Path("runs"), help="where runs would lie (default: runs)")
    command.add_argument(
        "--processes", type=positive_integer, help="that train together (default: one per GPU, else 2)"
    )
    command.add_argument("--worker", type=path, help=argparse.SUPPRESS)  # the folder that such a process works for


def _doctor(options: argparse.Namespace) -> int:
    choose_accelerator()
    if options.worker:
        _work(options.worker)
        return 0
    from pipeline.doctor import examine

    return 0 if examine.examine(options.folder, options.processes or "auto") else 1


def _work(folder: Path) -> None:
    """Be one of the processes that train together, to its end."""
    from pipeline.training import launcher

    lock = launcher.become_worker(folder)
    try:
        from pipeline.doctor import workers

        workers.work(folder)
    except BaseException as error:
        launcher.tell_failure(error)
        raise
    finally:
        del lock

"""Seeded faults in small whole runs: small stage, (reshard,) expansion, large stage, on two ranks.

    python -m tests.soak --folder DIR --faults 300 --seed 1      started again it goes on behind the last fault
    python -m tests.soak --folder DIR --report                   tables of what was found so far
    python -m tests.soak --folder DIR --faults 20 --imports      commands as users start them, for honest restart times

Workers and commands are killed, stopped and asked to stop, the disk fills up, files are cut and bits flip, while a run
starts, trains, saves, expands and reshards. Each run meets 20 faults, is started again behind each, and must end with
the bits of the run that nobody disturbed. Exit code 1: something was wrong; the report names it, and DIR keeps the run.
Without root the disk does not fill up, and `--kinds` says what is left.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from tests.soak.faults import KINDS, TWO_HOSTS
from tests.soak.log import Log
from tests.soak.soak import Soak
from tests.soak.table import report

MOUNT = ["unshare", "--mount", "mount", "-t", "tmpfs", "trial", "/tmp"]
NETWORK = ["unshare", "--net", "ip", "link", "add", "trial", "type", "veth", "peer", "name", "end"]
"""Commands that leave nothing behind."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    folder = options.folder.resolve()
    if not options.report:
        signal.signal(signal.SIGTERM, partial(_end, os.getpid()))
        soak = Soak(
            folder,
            options.seed,
            options.kinds or possible_kinds(),
            options.imports,
            say=lambda line: print(line, flush=True),
        )
        soak.go(options.faults)
    log = Log(folder / "soak.jsonl")
    print(report(log))
    return 1 if log.wrong else 0


def _end(soak: int, number: int, frame: FrameType | None) -> None:
    """On SIGTERM the soak leaves no mount behind; a fork of it that has not said yet what it does with it just ends."""
    if os.getpid() == soak:
        sys.exit(128 + number)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tests.soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="holds everything")
    parser.add_argument("--faults", type=int, default=300, help="in all, those of earlier starts included")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--imports", action="store_true", help="start commands as users do, with their imports")
    parser.add_argument("--report", action="store_true", help="print tables and start nothing")
    return parser


def possible_kinds() -> list[str]:
    """All that this user may do on this machine; what is left out is said."""
    refused = {**_refused("full disk", MOUNT), **_refused(TWO_HOSTS, NETWORK)}
    for kind, reason in refused.items():
        print(f"without '{kind}': {reason}", flush=True)
    return [kind for kind in KINDS if kind not in refused]


def _refused(kind: str, trial: Sequence[str]) -> dict[str, str]:
    """The reason, by kind, where a command that tries what it needs fails."""
    try:
        done = subprocess.run(trial, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return {kind: f"no {error.filename}"}
    return {} if done.returncode == 0 else {kind: done.stderr.strip() or f"{trial[0]} fails"}


if __name__ == "__main__":
    sys.exit(main())

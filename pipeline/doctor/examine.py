"""The whole examination, in order."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.doctor.disk import disk
from pipeline.doctor.finding import Finding
from pipeline.doctor.machine import machine
from pipeline.doctor.workers import findings
from pipeline.errors import UserError
from pipeline.training import launcher
from pipeline.training.launcher import Nodes, Seat


def examine(folder: Path, processes: int | str = "auto") -> bool:
    """Print a verdict a line. folder: where runs would lie. processes: that train together. Returns whether nothing is
    bad."""
    found = []
    for finding in (*machine(), *disk(folder)):
        print(finding.line, flush=True)
        found.append(finding)
    found += _workers(processes)
    bad, notes = (sum(finding.verdict == verdict for finding in found) for verdict in ("bad", "note"))
    print(f"{len(found)} verdicts: {bad} bad, {notes} to note")
    return not bad


def _workers(processes: int | str) -> Iterator[Finding]:
    """What the workers have found and printed; why they have not ended well is the last of it."""
    with tempfile.TemporaryDirectory(prefix="lemon-doctor-") as place:
        folder = Path(place)
        try:
            launcher.launch(
                ["doctor", "--worker", place], launcher.processes(processes), Nodes(), Seat("doctor"), folder
            )
        except UserError as error:
            failure = Finding(subject="workers", verdict="bad", text=str(error))
            print(failure.line, flush=True)
            yield failure
        told = findings(folder).read_text(encoding="utf-8") if findings(folder).exists() else ""
        yield from map(Finding.model_validate_json, told.splitlines())

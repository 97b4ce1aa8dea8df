"""From run folders to the content of a report."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from pipeline.accounting import totals
from pipeline.accounting.recorded_runs import RecordedRun, RecordReader
from pipeline.accounting.savings import compare_run
from pipeline.accounting.speed import speed
from pipeline.accounting.wall_time import wall_time
from pipeline.errors import UserError
from pipeline.report import tables
from pipeline.report.content import Report, Run


def build(runs: Sequence[Path | str], *, target: float | None = None) -> Report:
    """Read run folders, each file once, and compute everything.

    target: the evaluation loss to compare at, in nats; None: the final one of each from-scratch baseline. Raises
    UserError for a folder that contains no run, a damaged file, or an impossible target.
    """
    if not runs:
        raise UserError("no run folder; name one or several, such as: lemon report runs/NAME")
    if target is not None and not (math.isfinite(target) and target > 0):
        raise UserError(f"--target {target}: a target is an evaluation loss above 0, such as 3.5")
    reader = RecordReader()
    recorded = reader.runs([Path(folder) for folder in runs])
    options = [] if target is None else ["--target", str(target)]
    command = shlex.join(["lemon", "report", *map(str, runs), *options])
    return Report(command=command, runs=[_run(run, recorded, reader, target) for run in recorded])


def _run(run: RecordedRun, all_runs: list[RecordedRun], reader: RecordReader, target: float | None) -> Run:
    comparisons, remarks = compare_run(run, all_runs, reader, target)
    stages = [tables.stage(stage) for stage in run.stages.values()]
    return Run(
        title=run.title,
        folder=str(run.folder),
        kind=run.data_config["kind"],
        unigram_entropy=run.data.get("unigram_entropy"),
        unfinished=[f"stage '{stage.stage}' {stage.state}" for stage in stages if not stage.finished],
        warnings=tables.warnings(stages),
        comparisons=comparisons,
        remarks=remarks,
        stages=stages,
        ledger=totals.add_up(run.stages.values()),
        continuity=tables.continuity(run, reader),
        speed=[speed(stage) for stage in run.trained if stage.steps],
        wall_time=[spent for stage in run.trained if (spent := wall_time(stage.name, stage.times))],
        events=tables.events(run),
        models=tables.models(run),
    )

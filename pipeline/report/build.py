"""From run folders to the content of a report."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pipeline.accounting import totals
from pipeline.accounting.baselines import Rule, require_known
from pipeline.accounting.crossing import Metric
from pipeline.accounting.recorded_runs import RecordedRun, RecordReader
from pipeline.accounting.savings import compare_run
from pipeline.accounting.speed import speed
from pipeline.accounting.wall_time import wall_time
from pipeline.errors import UserError
from pipeline.report import tables
from pipeline.report.content import Report, Run


def build(
    runs: Sequence[Path | str],
    *,
    target: float | Literal["final", "lowest"] | None = None,
    baseline: str | None = None,
    metric: Metric = "loss",
) -> Report:
    """Read run folders, each file once, and compute everything.

    target: what to compare at, in nats or from 0 to 1; `final` and `lowest`: of each from-scratch baseline; None: at
    which a stage was to stop, else final. baseline: the stage from scratch; None: as a run's config says, else the best
    of them. metric: by which is compared. Raises UserError for a folder that contains no run, a damaged file, an
    impossible target, or a baseline that no run has.
    """
    if not runs:
        raise UserError("no run folder; name one or several, such as: lemon report runs/NAME")
    rule = Rule(target, baseline, metric)
    rule.require_possible()
    reader = RecordReader()
    recorded = reader.runs([Path(folder) for folder in runs])
    require_known(recorded, baseline)
    command = shlex.join(["lemon", "report", *map(str, runs), *_options(rule)])
    return Report(command=command, runs=[_run(run, recorded, reader, rule) for run in recorded])


def _options(rule: Rule) -> Iterator[str]:
    if rule.target is not None:
        yield from ("--target", str(rule.target))
    if rule.baseline is not None:
        yield from ("--baseline", rule.baseline)
    if rule.metric != "loss":
        yield from ("--metric", rule.metric)


def _run(run: RecordedRun, all_runs: list[RecordedRun], reader: RecordReader, rule: Rule) -> Run:
    comparisons, remarks = compare_run(run, all_runs, reader, rule)
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

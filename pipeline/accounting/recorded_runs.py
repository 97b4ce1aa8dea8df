"""Run folders in memory: what they recorded, every file read once."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from pipeline import models
from pipeline.config.schema import FIT
from pipeline.errors import UserError, one_line
from pipeline.records.event_records import EventRecord
from pipeline.records.folder_names import usable_as_folder
from pipeline.records.ledger_check import require_agreement
from pipeline.records.run_folder import StageFolder, read_json
from pipeline.records.stage_facts import StageFacts, TrainFacts, parse
from pipeline.records.stage_records import TRAINING, EvaluationRecord, LedgerEntry, MetricsRecord, TrainingRecord
from pipeline.records.time_records import SpentRecord, StartRecord


class Content(BaseModel):
    """Part of a public format: no field may change, none may be misspelt."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Evaluation(Content):
    """One evaluation of a training stage. flops: training FLOPs spent until then; loss in nats; top1 from 0 to 1."""

    step: int
    flops: int
    loss: float
    perplexity: float | None = None
    top1: float | None = None


def curve(metrics: list[MetricsRecord], ledger: list[LedgerEntry]) -> list[Evaluation]:
    """Every evaluation beside its training FLOPs, in order; one whose loss is not a number has no place on it."""
    costs = sorted((entry.step, entry.flops) for entry in ledger if entry.kind in TRAINING)
    points, total, next_cost = [], 0, 0
    for record in (record for record in metrics if isinstance(record, EvaluationRecord)):
        while next_cost < len(costs) and costs[next_cost][0] <= record.step:
            total += costs[next_cost][1]
            next_cost += 1
        if math.isfinite(record.eval_loss):
            points.append(_point(record, total))
    return points


def _point(record: EvaluationRecord, flops: int) -> Evaluation:
    return Evaluation(
        step=record.step, flops=flops, loss=record.eval_loss, perplexity=record.perplexity, top1=record.top1
    )


@dataclass(frozen=True)
class RecordedStage:
    """One stage. facts: stage.json, None before the stage has started; plan: plan.json, of an expansion only;
    metrics: the records of metrics.jsonl; ledger: what ledger.jsonl accounts for; events, times: the records
    of events.jsonl and times.jsonl."""

    path: Path
    kind: str
    facts: StageFacts | None
    plan: dict[str, Any]
    metrics: list[MetricsRecord]
    ledger: list[LedgerEntry]
    events: list[EventRecord]
    times: list[StartRecord | SpentRecord]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def finished(self) -> bool:
        return self.facts is not None and self.facts.status == "finished"

    @property
    def training(self) -> TrainFacts | None:
        """The facts of a training stage that has started."""
        return self.facts if isinstance(self.facts, TrainFacts) else None

    @property
    def block(self) -> int | None:
        """Tokens of a sample of a training stage, where that is another block than the run's data have: evaluations in
        blocks of different lengths measure different things."""
        return self.training.settings.block if self.training else None

    @cached_property
    def steps(self) -> list[TrainingRecord]:
        """The records of training steps."""
        return [record for record in self.metrics if isinstance(record, TrainingRecord)]

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        return curve(self.metrics, self.ledger)

    @property
    def last_step(self) -> int:
        """The last step that was measured."""
        steps = [record.step for record in self.steps[-1:]] + [point.step for point in self.evaluations[-1:]]
        return max(steps, default=0)


@dataclass(frozen=True)
class RecordedRun:
    """One run folder. title tells it from the other runs of a report; data_config: the config's section on data;
    data: the facts of data.json; baseline: the stage that the config names as such."""

    folder: Path
    title: str
    data_config: dict[str, Any]
    data: dict[str, Any]
    stages: dict[str, RecordedStage]
    baseline: str | None = None

    @property
    def trained(self) -> list[RecordedStage]:
        """The training stages that have started, fits among them."""
        return [stage for stage in self.stages.values() if stage.training]

    @property
    def models(self) -> list[RecordedStage]:
        """The stages that have started and train a model."""
        return [stage for stage in self.trained if stage.kind == "train"]


class RecordReader:
    """Reads files of run folders, each once."""

    def __init__(self) -> None:
        self._objects: dict[Path, dict[str, Any]] = {}
        self._stages: dict[Path, RecordedStage] = {}

    def json(self, path: Path) -> dict[str, Any]:
        """A JSON object, empty where there is no such file. Raises UserError for a damaged one."""
        key = path.resolve()
        if key not in self._objects:
            self._objects[key] = read_json(path) if path.exists() else {}
        return self._objects[key]

    def stage(self, path: Path, kind: str = "unknown") -> RecordedStage:
        """A stage folder. kind: what the config says, for a stage that has not started. Raises UserError."""
        key = path.resolve()
        if key not in self._stages:
            folder, content = StageFolder(path), self.json(path / "stage.json")
            facts, plan = _facts(folder.facts_file, content) if content else None, self.json(path / "plan.json")
            records = list(folder.metrics), folder.ledger.accounted()
            if isinstance(facts, TrainFacts):
                require_agreement(folder.ledger.path, records[1], facts)
            beside = list(folder.events), list(folder.times)
            self._stages[key] = RecordedStage(path, facts.kind if facts else kind, facts, plan, *records, *beside)
        return self._stages[key]

    def runs(self, folders: list[Path]) -> list[RecordedRun]:
        """Run folders, each once. Raises UserError for a folder that holds no run, or for a damaged file."""
        distinct = list({folder.resolve(): folder for folder in reversed(folders)}.values())[::-1]
        configs = [(folder, _config(folder)) for folder in distinct]
        names = [config["name"] for _, config in configs]
        return [self._run(folder, config, names.count(config["name"]) == 1) for folder, config in configs]

    def _run(self, folder: Path, config: dict[str, Any], name_is_unique: bool) -> RecordedRun:
        listed = [stage for name, kind in config["stages"] for stage in _with_its_fit(folder, name, kind)]
        stages = {name: self.stage(folder / name, kind) for name, kind in listed}
        data = self.json(folder / "data" / "data.json").get("facts", {})
        title = config["name"] if name_is_unique else str(folder)
        return RecordedRun(folder, title, config["data"], data, stages, config["baseline"])


def _with_its_fit(folder: Path, name: str, kind: str) -> Iterator[tuple[str, str]]:
    """(name, kind) of a stage of the config, and before it those of the fit that an expansion has begun."""
    if kind == "expand" and (folder / f"{name}{FIT}" / "stage.json").exists():
        yield f"{name}{FIT}", "fit"
    yield name, kind


def _facts(path: Path, content: dict[str, Any]) -> StageFacts:
    """Raises UserError as `parse` does, and for a family that is none: the stage would be compared with no other."""
    facts = parse(path, content)
    try:
        models.family(facts.family)
    except UserError as error:
        raise UserError(f"{path}: {error}; the file is damaged, restore it") from error
    return facts


def _config(folder: Path) -> dict[str, Any]:
    """The parts of config.yaml that accounting needs. It is not validated again: an old run must stay readable when
    a data set or checkpoint folder that it started from has gone."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{folder}: not a run folder (no config.yaml in it); "
            "name a folder that 'lemon run' wrote, such as runs/NAME"
        )
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {
            "name": str(config["name"]),
            "data": {key: value for key, value in config["data"].items() if key != "workers"},
            "stages": [(usable_as_folder(stage["name"]), stage["kind"]) for stage in config["stages"]],
            "baseline": config.get("baseline"),
        }
    except (OSError, yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: not the config of a run ({one_line(error)}); restore it, then report again"
        ) from error

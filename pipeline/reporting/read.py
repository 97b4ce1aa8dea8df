"""Run folders as the report sees them: stages, their evaluations beside their cost, and where each came from."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline.errors import UserError
from pipeline.folders import StageFolder, read_json
from pipeline.ledger import Records, curve, spent_until


@dataclass(frozen=True)
class Stage:
    """One stage. `facts` is stage.json, empty when the stage has not started; `steps` are the records of training
    steps; `evaluations` are dicts of step, flops (training FLOPs up to it), loss, and perplexity or top1; `lossy`: why
    an expansion computes another function, as its plan declared."""

    name: str
    kind: str
    folder: StageFolder
    facts: dict
    steps: list[dict]
    evaluations: list[dict]
    lossy: list[str]

    @property
    def started(self) -> bool:
        return bool(self.facts)

    @property
    def finished(self) -> bool:
        return self.facts.get("status") == "finished"

    @property
    def step(self) -> int:
        """The last step that was measured."""
        return max((records[-1]["step"] for records in (self.steps, self.evaluations) if records), default=0)

    def spent(self, until: int | None = None) -> int:
        """Training FLOPs of the whole stage, or of its first `until` steps."""
        return spent_until(self.folder.ledger, self.step if until is None else until)


@dataclass(frozen=True)
class Run:
    """One run folder. `title` tells it from the other runs of the report; `data` is data.json's facts, `recipe` the
    config's section on data."""

    folder: Path
    title: str
    recipe: dict
    data: dict
    stages: dict[str, Stage]

    @property
    def trained(self) -> list[Stage]:
        """The training stages that have started."""
        return [stage for stage in self.stages.values() if stage.kind == "train" and stage.started]


@dataclass(frozen=True)
class Ancestor:
    """A stage that another came from, directly or not. `until`: the step of the checkpoint that was taken, where the
    origin names one; None: the stage's last."""

    stage: Stage
    until: int | None

    @property
    def cost(self) -> int:
        return self.stage.spent(self.until)

    @property
    def evaluations(self) -> list[dict]:
        return [e for e in self.stage.evaluations if self.until is None or e["step"] <= self.until]


def read_runs(folders: list[Path]) -> list[Run]:
    """Read run folders, each once. Raises UserError for a folder that holds no run, or a damaged file."""
    distinct = {folder.resolve(): folder for folder in reversed([Path(folder) for folder in folders])}
    configs = [(folder, _config(folder)) for folder in reversed(distinct.values())]
    names = [config["name"] for _, config in configs]
    return [_run(folder, config, names.count(config["name"]) == 1) for folder, config in configs]


def _config(folder: Path) -> dict:
    """The parts of config.yaml that a report needs. It is not validated again: an old run must stay readable when
    a data set or checkpoint folder that it started from has gone."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{folder}: not a run folder (no config.yaml in it); give a folder that 'lemon run' made, such as runs/NAME"
        )
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {
            "name": str(config["name"]),
            "data": {key: value for key, value in config["data"].items() if key != "workers"},
            "stages": [(stage["name"], stage["kind"]) for stage in config["stages"]],
        }
    except (OSError, yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
        detail = " ".join(str(error).split())
        raise UserError(f"{path}: not the config of a run ({detail}); restore it, then report again") from error


def _run(folder: Path, config: dict, alone: bool) -> Run:
    facts_file = folder / "data" / "data.json"
    data = read_json(facts_file).get("facts", {}) if facts_file.exists() else {}
    stages = {name: read_stage(folder / name, kind) for name, kind in config["stages"]}
    return Run(folder, config["name"] if alone else str(folder), config["data"], data, stages)


def read_stage(path: Path, kind: str | None = None) -> Stage:
    """Read a stage folder. `kind` is needed only for a stage that has not started."""
    folder = StageFolder(path)
    facts = folder.facts
    metrics = _whole(folder.metrics)
    _whole(folder.ledger)
    steps = [record for record in metrics if "loss" in record]
    return Stage(path.name, facts.get("kind", kind), folder, facts, steps, _evaluations(folder, metrics), _lossy(path))


def _lossy(path: Path) -> list[str]:
    plan = path / "plan.json"
    return read_json(plan).get("lossy", []) if plan.exists() else []


def _whole(records: Records) -> list[dict]:
    try:
        return list(records)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{records.path}: not valid JSONL ({error}); the file is damaged") from error


def _evaluations(folder: StageFolder, metrics: list[dict]) -> list[dict]:
    """The curve with its extra measures; an evaluation whose loss is not a number has no place on it."""
    records = [record for record in metrics if "eval_loss" in record]
    points = zip(curve(folder.metrics, folder.ledger), records, strict=False)  # a running stage may have added one
    return [
        {"step": step, "flops": flops, "loss": loss}
        | {key: record[key] for key in ("perplexity", "top1") if key in record}
        for (step, flops, loss), record in points
        if math.isfinite(loss)
    ]


def origins(run: Run, stage: Stage) -> tuple[list[Ancestor], str | None]:
    """The chain of stages that `stage` came from, nearest first, and the origin at its end that is no stage folder
    (its training is not recorded), or None."""
    chain: list[Ancestor] = []
    folder, origin = run.folder, stage.facts.get("origin")
    while origin is not None:
        ancestor = _ancestor(folder, origin)
        if ancestor is None:
            return chain, origin
        chain.append(ancestor)
        folder, origin = ancestor.stage.folder.path.parent, ancestor.stage.facts.get("origin")
    return chain, None


def _ancestor(run_folder: Path, origin: str) -> Ancestor | None:
    """A stage of the same run, or a stage folder elsewhere that `origin` (the stage, its checkpoints folder, or one
    checkpoint) lies in; a relative path counts from the run folder or from the working directory."""
    for start in (run_folder / origin, Path(origin)):
        for folder in (start, *start.parents[:2]):
            if (folder / "stage.json").exists():
                step = re.fullmatch(r"step-(\d+)", start.name)
                return Ancestor(read_stage(folder), int(step[1]) if step else None)
    return None

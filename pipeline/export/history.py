"""How a checkpoint's weights came to be: back from it, through manifests and run folders, as far as records go."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.checkpoints import manifest
from pipeline.errors import UserError
from pipeline.folders import StageFolder, read_json
from pipeline.ledger import Records


@dataclass(frozen=True)
class Chapter:
    """One checkpoint on the way. manifest and stage: what manifest.json and, inside a run, stage.json say; empty without.
    spent: FLOPs, samples and tokens by kind; None where nothing says it."""

    place: Path
    manifest: dict
    stage: dict
    spent: dict[str, dict] | None
    plan: dict = field(default_factory=dict)
    loss: float | None = None

    @property
    def kind(self) -> str:
        """train, expand, reshard, export; foreign without a manifest of ours."""
        return self.manifest.get("kind", "foreign")

    @property
    def name(self) -> str:
        return self.stage.get("name") or self.place.name

    @property
    def run(self) -> Path | None:
        """The run folder that it lies in."""
        return self.place.resolve().parents[2] if self.stage else None


def history(folder: Path) -> list[Chapter]:
    """The chapters, oldest first; the last is `folder` itself."""
    found: list[Chapter] = []
    place: Path | None = folder
    while place is not None and all(place != chapter.place for chapter in found):
        found.append(chapter := _chapter(place))
        place = _origin(chapter)
    return found[::-1]


def _chapter(place: Path) -> Chapter:
    facts, stage = _json(place / manifest.NAME), StageFolder(place.resolve().parent.parent)
    step, plan = facts.get("step", 0), _json(place / "plan.json") if facts.get("kind") == "expand" else {}
    if place.resolve().parent != stage.checkpoints or not stage.facts:
        return Chapter(place, facts, {}, _spent(facts, None, step), plan)
    losses = [record["eval_loss"] for record in _whole(stage.metrics) if "eval_loss" in record and record["step"] <= step]
    return Chapter(place, facts, stage.facts, _spent(facts, stage.ledger, step), plan, losses[-1] if losses else None)


def _whole(records: Records) -> list[dict]:
    try:
        return list(records)
    except ValueError as error:
        raise UserError(f"{records.path}: not valid JSONL ({error}); the file is damaged") from error


def _json(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def _spent(facts: dict, ledger: Records | None, step: int) -> dict[str, dict] | None:
    """By kind from the stage's ledger up to the checkpoint's step; of a checkpoint outside a run, its manifest's sum."""
    if facts.get("kind") in ("reshard", "export"):
        return {}
    if ledger is None:
        own = facts.get("provenance", {}).get("own_flops")
        return None if own is None else {facts.get("kind", "recorded"): {"samples": 0, "tokens": 0, "flops": own}}
    found: dict[str, dict] = {}
    for entry in (entry for entry in _whole(ledger) if entry["step"] <= step):
        row = found.setdefault(entry["kind"], {"samples": 0, "tokens": 0, "flops": 0})
        for unit in row:
            row[unit] += entry[unit]
    return found


def _origin(chapter: Chapter) -> Path | None:
    """The checkpoint that this one was made from. A stage of the same run is looked for there first: runs may be moved."""
    held = chapter.manifest
    said = held.get("source", {}).get("path") or (held.get("provenance") or {}).get("origin")
    if said is None:
        return None
    if chapter.run and re.fullmatch(r"[\w.-]+", origin := str(chapter.stage.get("origin"))):
        moved = chapter.run / origin / "checkpoints" / Path(said).name
        if moved.exists():
            return moved
    return Path(said)

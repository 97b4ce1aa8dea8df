"""Where a model came from: back from a stage or a checkpoint, through manifests and run folders."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.accounting.recorded_runs import Evaluation, RecordedStage, RecordReader
from pipeline.accounting.totals import Amounts, by_kind, training_flops
from pipeline.records.run_folder import step_of
from pipeline.records.stage_facts import ExpandFacts

logger = logging.getLogger(__name__)

MANIFEST, CHECKPOINTS = "manifest.json", "checkpoints"


@dataclass(frozen=True)
class Ancestor:
    """A stage or a checkpoint on the way.

    path: the folder, as it was named. stage: the stage that the checkpoint is of; None outside a run. manifest: of the
    checkpoint (of a stage's newest one, where the stage was named), empty where there is none. plan: what an expansion
    planned. step: of the checkpoint; None: the whole stage.
    """

    path: Path
    stage: RecordedStage | None
    manifest: dict[str, Any]
    plan: dict[str, Any]
    step: int | None

    @property
    def recorded(self) -> bool:
        """Whether anything is known of it."""
        return self.stage is not None or bool(self.manifest)

    @property
    def kind(self) -> str:
        """train, expand, reshard, export; foreign where nothing is known."""
        return self.manifest.get("kind") or (self.stage.kind if self.stage else "foreign")

    @property
    def name(self) -> str:
        return self.stage.name if self.stage else self.path.name

    @property
    def run(self) -> Path | None:
        """The run folder that it lies in."""
        return self.stage.path.parent if self.stage else None

    @property
    def method(self) -> str | None:
        """How it was grown; None where that is not known, or it was not."""
        facts = self.stage.facts if self.stage else None
        return facts.method if isinstance(facts, ExpandFacts) else self.manifest.get("method")

    @property
    def lossless(self) -> bool | None:
        """Whether that kept the function."""
        facts = self.stage.facts if self.stage else None
        return facts.lossless if isinstance(facts, ExpandFacts) else self.manifest.get("lossless")

    @property
    def block(self) -> int | None:
        """Tokens of a sample, where a training stage had another block than its run's data."""
        return self.stage.block if self.stage else None

    @property
    def last_step(self) -> int:
        return self.stage.last_step if self.step is None and self.stage else self.step or 0

    @property
    def evaluations(self) -> list[Evaluation]:
        """Those up to its step."""
        return [point for point in self.stage.evaluations if point.step <= self.last_step] if self.stage else []

    @property
    def training_flops(self) -> int | None:
        """Training FLOPs of this part alone; None: not recorded."""
        if self.kind == "expand":
            return int(self.fit.get("training_flops", 0))
        if self.stage:
            return training_flops(self.stage.ledger, self.last_step)
        return 0 if self.kind in ("reshard", "export") else None

    @property
    def fit(self) -> dict[str, Any]:
        """What fitting a learned method has cost before an expansion: `flops` in all, and `training_flops`."""
        facts = self.stage.facts if self.stage else None
        return (facts.fit if isinstance(facts, ExpandFacts) else None) or self.manifest.get("fit") or {}

    @property
    def trains(self) -> bool:
        """Whether it cost training: of a model, or of a growth."""
        return self.kind == "train" or bool(self.kind == "expand" and self.training_flops)

    @property
    def spent(self) -> dict[str, Amounts] | None:
        """All that was spent on this part alone, by kind; outside a run as one sum; None: not recorded."""
        if self.kind in ("reshard", "export"):
            return {}
        fitted = {"fit": Amounts(flops=self.fit["flops"])} if self.fit.get("flops") else {}
        if self.stage is None:
            flops = (self.manifest.get("provenance") or {}).get("own_flops")
            return None if flops is None else {self.kind: Amounts(flops=flops)}
        return fitted | by_kind([entry for entry in self.stage.ledger if entry.step <= self.last_step])


def lineage(start: Path, reader: RecordReader) -> list[Ancestor]:
    """`start`, a stage folder or a checkpoint, and what it came from, nearest first. The last one was trained from
    scratch, or nothing is recorded of what lies behind it. Raises UserError for damaged files."""
    chain: list[Ancestor] = []
    ancestor: Ancestor | None = _at(start, reader)
    while ancestor is not None:
        if any(ancestor.path.resolve() == other.path.resolve() for other in chain):
            logger.warning(f"{ancestor.path}: is recorded as its own origin; what lies behind it counts as not known")
            return [*chain, Ancestor(ancestor.path, None, {}, {}, None)]
        chain.append(ancestor)
        ancestor = _origin(ancestor, reader)
    return chain


def origins(stage: RecordedStage, reader: RecordReader) -> tuple[list[Ancestor], str | None]:
    """What `stage` came from, nearest first, as far as all training is recorded; and where the records end, or None."""
    chain = lineage(stage.path, reader)[1:]
    for index, ancestor in enumerate(chain):
        if ancestor.training_flops is None:
            return chain[:index], str(ancestor.path)
    return chain, None


def _at(path: Path, reader: RecordReader) -> Ancestor:
    """`path` is a stage folder, its folder of checkpoints, or a checkpoint inside or outside a run."""
    folder, checkpoint = _split(path.resolve())
    stage = reader.stage(folder) if (folder / "stage.json").exists() else None
    if stage is None:
        checkpoint = path.resolve()
    written = {path.parent: step_of(path.parent) for path in (folder / CHECKPOINTS).glob(f"step-*/{MANIFEST}")}
    newest = max(written, key=lambda checkpoint: (written[checkpoint] or 0, checkpoint.name), default=folder)
    manifest = reader.json((checkpoint or newest) / MANIFEST)
    if stage is not None and manifest.get("kind") == "reshard":  # the stage's own checkpoint, in another layout
        manifest = {**manifest, "kind": stage.kind, "source": {}}
    expanded_here = stage is None and manifest.get("kind") == "expand"
    plan = stage.plan if stage else reader.json(path.resolve() / "plan.json") if expanded_here else {}
    step = None if checkpoint is None else manifest.get("step", step_of(checkpoint))
    return Ancestor(path, stage, manifest, plan, step)


def _split(path: Path) -> tuple[Path, Path | None]:
    """The stage folder that `path` would belong to, and the checkpoint in it that it would be."""
    if path.name == CHECKPOINTS:
        return path.parent, None
    return (path.parent.parent, path) if path.parent.name == CHECKPOINTS else (path, None)


def _origin(ancestor: Ancestor, reader: RecordReader) -> Ancestor | None:
    """What it was made from: the manifest names the checkpoint, stage.json the stage or a path. A stage of the same run
    is looked for there first, because runs may be moved; a relative path counts from the run or the working folder."""
    manifest, stage = ancestor.manifest, ancestor.stage
    checkpoint = manifest.get("source", {}).get("path") or (manifest.get("provenance") or {}).get("origin")
    name = stage.facts.origin if stage and stage.facts else None
    places = [Path(place) for place in (checkpoint, name) if place]
    outside = places[0] if places else None
    if stage and name:
        beside = stage.path.parent / name
        tag = Path(checkpoint) if checkpoint else None
        moved = [beside / CHECKPOINTS / tag.name] if tag and step_of(tag) is not None else []
        places = [*moved, beside, *places]
    candidates = (_at(place, reader) for place in places)
    known = next((candidate for candidate in candidates if candidate.recorded), None)
    if known is None and outside is not None:
        return Ancestor(outside, None, {}, {}, None)
    return known

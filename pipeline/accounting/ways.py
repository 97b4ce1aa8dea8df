"""The way to a trained stage: what shares its schedule, and the sources that it was grown from."""

from dataclasses import dataclass

from pipeline.accounting.lineage import Ancestor, origins
from pipeline.accounting.recorded_runs import Evaluation, RecordedStage, RecordReader


@dataclass(frozen=True)
class Way:
    """Parts, oldest first. own: the stage itself, last, and what shares its schedule, with the growths before and
    between; sources: what trains before that, a model or a growth; growths: the expansions that follow each other at
    the head, the last one first; unknown: of which checkpoint the training is not recorded; chain: all ancestors, and
    the stage."""

    stage: RecordedStage
    own: list[Ancestor]
    sources: list[Ancestor]
    growths: list[Ancestor]
    unknown: str | None
    chain: list[Ancestor]

    @property
    def around_growth(self) -> tuple[Ancestor, Ancestor] | None:
        """The trainings before the last growth and behind it; None where nothing grew, or nothing was trained
        before."""
        grown = [place for place, part in enumerate(self.chain) if part.kind == "expand"]
        if not grown:
            return None
        before = [part for part in self.chain[: grown[-1]] if part.kind == "train"]
        behind = [part for part in self.chain[grown[-1] :] if part.kind == "train"]
        return (before[-1], behind[0]) if before and behind else None

    @property
    def source_flops(self) -> int | None:
        """Training FLOPs before the growth; None where they are not recorded."""
        return None if self.unknown else sum(source.training_flops or 0 for source in self.sources)

    @property
    def evaluations(self) -> list[Evaluation]:
        """Those of its own parts, with the FLOPs since the first of them began."""
        return joined(self.own, self.stage.block)

    @property
    def in_one_run(self) -> list[str]:
        """The names of the trainings that share one schedule with it, itself included; empty where it has its own."""
        if not _continues(self.stage):
            return []
        return [part.name for part in self.own if part.kind == "train"]


def way(stage: RecordedStage, reader: RecordReader) -> Way:
    """Raises UserError for damaged files."""
    chain, unknown = origins(stage, reader)
    grown = next((index for index, ancestor in enumerate(chain) if ancestor.kind == "expand"), len(chain))
    behind = _behind(stage, chain, grown)
    end = Ancestor(stage.path, stage, {}, {}, None)
    own = [*reversed(chain[:behind]), end]
    sources = [ancestor for ancestor in reversed(chain[behind:]) if ancestor.trains]
    return Way(stage, own, sources, _growths(chain[grown:]), unknown, [*reversed(chain), end])


def _growths(chain: list[Ancestor]) -> list[Ancestor]:
    """The expansions at the head of a chain of ancestors."""
    trained = next((place for place, ancestor in enumerate(chain) if ancestor.kind == "train"), len(chain))
    return chain[:trained]


def _behind(stage: RecordedStage, chain: list[Ancestor], grown: int) -> int:
    """Where in a chain of ancestors, nearest first, the source stands: the first training behind the last growth that
    is no part of the same run."""
    later: RecordedStage | None = stage
    for place, ancestor in enumerate(chain):
        if ancestor.kind == "train":
            if place > grown and not _continues(later):
                return place
            later = ancestor.stage
    return len(chain)


def _continues(stage: RecordedStage | None) -> bool:
    """Whether its schedule goes on with that of the training before it."""
    facts = stage.training if stage else None
    schedule = facts.fingerprint.get("stage", {}).get("schedule", {}) if facts else {}
    return bool(schedule.get("continue"))


def joined(parts: list[Ancestor], block: int | None) -> list[Evaluation]:
    """The evaluations of stages that follow each other, the cost of each added to the next. block: of the evaluations
    that are comparable; those in others are left out."""
    points, offset = [], 0
    for part in parts:
        own = part.evaluations if part.block == block else []
        points += [point.model_copy(update={"flops": point.flops + offset}) for point in own]
        offset += part.training_flops or 0
    return points

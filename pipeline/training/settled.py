"""Keys of a stage that `auto` leaves to the machine on which it begins.

What was settled then is recorded, and kept on whatever machine the stage goes on: it changes the last digits of its
numbers, and a resume is to give those of an uninterrupted run.
"""

from typing import Any

from pipeline.config.schema import TrainStage
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import TrainFacts

BEFORE: dict[str, Any] = {"attention": "sdpa", "compile": False}
"""These keys, and what a stage did that began before there were any."""


def as_begun(stage: TrainStage, folder: StageFolder) -> TrainStage:
    """The stage with what was settled at its first start, in the place of `auto`."""
    facts = folder.facts
    if not isinstance(facts, TrainFacts):
        return stage
    return stage.model_copy(update={key: getattr(facts.settings, key) for key in BEFORE if _is_open(stage, key)})


def _is_open(stage: TrainStage, key: str) -> bool:
    return bool(getattr(stage, key) == "auto")


def agree(place: str, recorded: Any, now: Any) -> bool:
    """Whether a setting that a config leaves open may have the recorded value. place: dotted, the key comes last."""
    key = place.rpartition(".")[2]
    return key in BEFORE and (now == "auto" or now == as_recorded(place, recorded))


def as_recorded(place: str, recorded: Any) -> Any:
    """The value of a setting in a record: one that names none was begun before there was the key."""
    return BEFORE.get(place.rpartition(".")[2]) if recorded == "auto" else recorded

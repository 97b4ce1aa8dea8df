"""The checkpoint that a training stage begins from, and whether the engine goes on from its optimizer too.

An expansion is written as the shards of the stage behind it, and goes through the engine. Of any other start the
weights are taken, and the optimizer is fresh.
"""

from pathlib import Path

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout, manifest
from pipeline.config.schema import TrainStage


def continues_optimizer(start: Path, stage: TrainStage, world: int) -> bool:
    """Whether `start` is an expansion whose optimizer the engine of `stage` on `world` ranks can load."""
    content = manifest.read_if_any(start)
    if content is None or content.kind != "expand":
        return False
    stored, own = CheckpointLayout.from_facts(content.facts()), CheckpointLayout.of(stage, world)
    left = checkpoints.raw(start).optimizer()
    return stored.kind.engine_loads(stored, own, stage.optimizer) and stage.optimizer.continues(left)

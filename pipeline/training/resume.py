"""The checkpoint that an interrupted stage goes on from: the newest of which every byte is what was written.

One that is damaged is set aside with a warning, and the stage goes on from the one before it.
"""

from pathlib import Path

import torch.distributed as dist

from pipeline.checkpoints import manifest, publish
from pipeline.errors import UserError
from pipeline.training.engine import World, checkpoint_of_rank_0


def newest_whole(checkpoints: Path, world: World) -> Path | None:
    """The newest checkpoint whose files have the hashes of its manifest, None where there is no checkpoint. To be
    called by all ranks at once: each hashes its share. Raises UserError when all are damaged."""
    while newest := checkpoint_of_rank_0(publish.newest(checkpoints)):
        found: list[str | None] = [None] * world.size
        dist.all_gather_object(found, _damage(newest, world))
        damage = next((text for text in found if text), None)
        if damage is None:
            return newest
        if world.first:
            publish.set_aside(newest, damage)
        dist.barrier()
    return None


def _damage(checkpoint: Path, world: World) -> str | None:
    """What this rank finds damaged in its share of the files."""
    try:
        manifest.verify_share(checkpoint, world.rank, world.size)
    except UserError as error:
        return str(error)
    return None

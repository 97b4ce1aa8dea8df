"""The checkpoint that an interrupted stage goes on from: the newest of which every byte is what was written.

One that is damaged is set aside with a warning, and the stage goes on from the one before it.
"""

from functools import partial
from pathlib import Path

import torch.distributed as dist

from pipeline.checkpoints import manifest, publish
from pipeline.errors import UserError
from pipeline.training.process_group import World, checkpoint_of_rank_0, of_rank_0


def newest_whole(checkpoints: Path, world: World) -> Path | None:
    """The newest checkpoint whose files have the hashes of its manifest, None where there is no checkpoint. To be
    called by all ranks at once: each hashes its share. Raises UserError when all are damaged."""
    while newest := checkpoint_of_rank_0(publish.newest(checkpoints)):
        found: list[str | None] = [None] * world.size if world.first else []
        dist.gather_object(_damage(newest, world), found or None)
        if of_rank_0(partial(_is_whole, newest, found)):
            return newest
    return None


def _is_whole(checkpoint: Path, found: list[str | None]) -> bool:
    """On rank 0: whether no rank has found damage; else the checkpoint is set aside. Raises UserError when it is the
    only one."""
    if damage := next((text for text in found if text), None):
        publish.set_aside(checkpoint, damage)
    return damage is None


def _damage(checkpoint: Path, world: World) -> str | None:
    """What this rank finds damaged in its share of the files."""
    try:
        manifest.verify_share(checkpoint, world.rank, world.size)
    except UserError as error:
        return str(error)
    return None

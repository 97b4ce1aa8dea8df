"""Two states that are one to the bit, and how a test gets there: a script's checkpoint in another layout."""

from pathlib import Path

import torch

from pipeline.checkpoints import CheckpointLayout, State, manifest, reshard


def resharded(source: Path, out: Path, layout: CheckpointLayout) -> Path:
    """Written by two processes, and read back."""
    reshard.execute_reshard(reshard.plan_reshard(source, layout), out, 2)
    manifest.verify(out)
    return out


def require_same(one: State, other: State) -> None:
    """Groups, counts of steps, weights and slots."""
    assert [group.names for group in one.groups] == [group.names for group in other.groups]
    assert [group.hyper for group in one.groups] == [group.hyper for group in other.groups]
    assert (one.step, one.steps) == (other.step, other.steps)
    assert set(one.slots) == set(other.slots)
    kinds = [("weights", one.tensors, other.tensors), *((s, one.slots[s], other.slots[s]) for s in one.slots)]
    for kind, mine, theirs in kinds:
        assert set(mine) == set(theirs)
        for name, tensor in mine.items():
            assert torch.equal(tensor.tensor(), theirs[name].tensor()), (kind, name)

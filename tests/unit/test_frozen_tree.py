"""A file of torch.save, frozen and written later: what torch would have written, at the moment of the freezing."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from pipeline.checkpoints.serialization.frozen_tree import FrozenTree
from pipeline.checkpoints.serialization.host_memory import HostMemory
from pipeline.checkpoints.serialization.writer_pool import WriteTask


class Scaler:
    """An object that a checkpoint holds, with a tensor in it."""

    def __init__(self, tensor: torch.Tensor):
        self.scale, self.tensor = 4.0, tensor


def tree() -> dict:
    """Views of one storage, a parameter, attributes of tensors and of a dictionary, nothing, and an object."""
    base = torch.arange(40.0)
    flat = torch.arange(6).bfloat16()
    flat.ds_id = "0_5"
    module = OrderedDict(a=base[:10].view(2, 5).t(), b=base[5:20])
    module._metadata = {"": {"version": 1}}
    return {
        "module": module,
        "parameter": torch.nn.Parameter(torch.ones(3, 2)),
        "flat": [flat, (base, torch.empty(0), torch.tensor(3))],
        "scaler": Scaler(base),
        "words": {"stage": 2, "dtype": torch.float16, None: "x"},
    }


def written(frozen: FrozenTree, folder: Path) -> Path:
    task = WriteTask(frozen.file("a.pt", folder), folder)
    record = task.run(lambda size: None)
    assert record.digest == blake3(task.path.read_bytes()).hexdigest()
    assert [path.name for path in folder.iterdir()] == ["a.pt"]
    return task.path


@pytest.mark.parametrize("copied", [True, False])
def test_what_torch_save_would_have_written(tmp_path, copied):
    content = tree()
    frozen = FrozenTree.of(content)
    if copied:
        frozen = HostMemory().copy(frozen)
        content["module"]["b"].add_(100)
        content["scaler"].scale = 5.0
        content["words"]["stage"] = 3
    read = torch.load(written(frozen, tmp_path), weights_only=False)
    assert torch.equal(read["module"]["a"], torch.arange(10.0).view(2, 5).t())
    assert read["module"]["a"].stride() == (1, 5) and read["module"]._metadata == {"": {"version": 1}}
    assert read["flat"][0].ds_id == "0_5" and read["flat"][0].dtype is torch.bfloat16
    assert type(read["parameter"]) is torch.nn.Parameter and read["parameter"].requires_grad
    assert read["scaler"].scale == 4.0 and read["words"] == {"stage": 2, "dtype": torch.float16, None: "x"}
    shared = [read["module"]["a"], read["module"]["b"], read["flat"][1][0], read["scaler"].tensor]
    assert len({each.untyped_storage()._cdata for each in shared}) == 1
    assert shared[0].untyped_storage().nbytes() == 160


def test_memory_is_reserved_and_used_again():
    frozen = FrozenTree.of(tree())
    memory = HostMemory()
    memory.reserve([frozen])
    size = memory.size
    places = []
    for _ in range(3):
        memory.reuse()
        copy = memory.copy(frozen)
        places.append([storage.data_ptr() for storage in copy.storages if storage.nbytes()])
        assert memory.size == size
    assert places[0] == places[1] == places[2] and len(set(places[0])) == len(places[0])
    memory.copy(frozen)  # a second one at the same time takes its own
    assert memory.size == 2 * size
    memory.close()
    assert memory.size == 0
    assert torch.equal(copy.thawed()["flat"][1][0], torch.arange(40.0))

"""Hugging Face results above the size of a file: cut, indexed and read as transformers does."""

import json
from dataclasses import replace

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from transformers import AutoModelForImageClassification

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout, manifest, reshard
from tests.helpers.checkpoints import published

LIMIT = 3000
"""Bytes: some tensors of the sample are larger than that alone, others share a file."""


def resharded(source, out, layout, workers=1):
    reshard.execute_reshard(reshard.plan_reshard(source, layout), out, workers)
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_files_are_those_of_transformers(tmp_path, dtype):
    """Cut at the same places, with the same index, whatever the number of workers; `from_pretrained` reads the same
    numbers as from one file."""
    small = published(tmp_path, "vit", CheckpointLayout("zero", 2, 2))
    layout = CheckpointLayout("huggingface", dtype=dtype, max_shard_size=LIMIT)
    out = resharded(small, tmp_path / "shards", layout)
    state, _ = checkpoints.read(out)
    weights = {name: tensor.tensor().clone() for name, tensor in state.tensors.items()}  # none shares another's storage
    expected = split_torch_state_dict_into_shards(
        weights, filename_pattern="model{suffix}.safetensors", max_shard_size=LIMIT
    )
    index = json.loads((out / "model.safetensors.index.json").read_text())
    count = sum(tensor.numel for tensor in state.tensors.values())
    assert index["weight_map"] == expected.tensor_to_filename and len(expected.filename_to_tensors) > 3
    assert index["metadata"] == {"total_parameters": count, **expected.metadata}
    assert {path.name for path in out.glob("*.safetensors")} == set(expected.filename_to_tensors)
    whole = resharded(small, tmp_path / "whole", replace(layout, max_shard_size=10**9))
    assert [path.name for path in whole.glob("model*")] == ["model.safetensors"]
    one, other = (AutoModelForImageClassification.from_pretrained(folder).state_dict() for folder in (out, whole))
    assert all(torch.equal(one[name], other[name]) for name in other) and set(one) == set(other)
    assert manifest.read(resharded(small, tmp_path / "again", layout, workers=3)).files == manifest.read(out).files


def test_the_plan_knows_how_many_can_write():
    layout = CheckpointLayout("huggingface", max_shard_size=LIMIT)
    assert layout.kind.writers(LIMIT // 4 * 2, layout, workers=5) == 2
    assert layout.kind.writers(10, layout, workers=5) == 1

"""Buffers and frozen parameters of every dtype come out of every layout bit for bit, and are compared so."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout
from pipeline.checkpoints.state import State
from pipeline.checkpoints.tensors import LazyTensor, in_memory
from tests.helpers.checkpoints import foreign, state
from tests.helpers.cli import lemon

LAYOUTS = {
    "1 on 2": CheckpointLayout("zero", 1, 2),
    "2 on 3, bf16": CheckpointLayout("zero", 2, 3, bf16=True),
    "3 on 2": CheckpointLayout("zero", 3, 2),
    "3 on 4, bf16": CheckpointLayout("zero", 3, 4, bf16=True),
    "universal": CheckpointLayout("universal"),
}
PAIRS = [*itertools.pairwise([*LAYOUTS, "1 on 2"]), ("universal", "3 on 2"), ("3 on 2", "1 on 2")]
VALUES = {
    "int64": torch.tensor([16777217, 2**40 + 1, -3]),
    "scalar": torch.tensor(2**40 + 1),
    "bool": torch.tensor([True, False, True]),
    "complex64": torch.tensor([1 + 2j, -0.0 - 3j]),
    "float64": torch.tensor([1 + 2.0**-50]),
    "bfloat16": torch.tensor([[1.5, -0.0, float("nan")]], dtype=torch.bfloat16),
    "float16": torch.tensor([2.0**-24], dtype=torch.float16),
    "uint8": torch.arange(256, dtype=torch.uint8),
    "empty": torch.zeros(0, 3, dtype=torch.int32),
}


def of_every_dtype() -> State:
    """Frozen parameters take them too."""
    held = state()
    frozen = {f"fixed {name}": value for name, value in VALUES.items() if value.numel()}
    return replace(
        held,
        tensors={**held.tensors, **in_memory(frozen.items())},
        frozen=(*held.frozen, *frozen),
        buffers=in_memory(VALUES.items()),
        aliases={**held.aliases, "tied to frozen": "frozen"},
    )


def require_bits(one: Tensor, other: Tensor, name: str) -> None:
    assert (one.dtype, one.shape) == (other.dtype, other.shape), name
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    assert torch.equal(*flat), name


def require_all(held: dict[str, LazyTensor], expected: dict[str, LazyTensor]) -> None:
    assert set(held) == set(expected)
    for name, tensor in expected.items():
        require_bits(held[name].tensor(), tensor.tensor(), name)


@pytest.mark.parametrize("first, then", PAIRS)
def test_from_every_layout_into_every_other(tmp_path, capsys, first, then):
    before = of_every_dtype()
    folder, target = foreign(tmp_path / "small", before, LAYOUTS[first]), LAYOUTS[then]
    precision = "--bf16" if target.bf16 else "--no-bf16"
    zero = ["--zero-stage", target.zero_stage, "--world-size", target.world_size, precision]
    how = ["--format", target.name, *(zero if target.name == "zero" else [])]
    code, _, err = lemon(capsys, "reshard", folder, "--out", tmp_path / "out", *how)
    assert code == 0, err
    after = checkpoints.raw(tmp_path / "out")
    require_all(after.buffers, before.buffers)
    require_all(after.tensors, before.tensors)
    assert after.frozen == before.frozen and after.aliases == before.aliases
    code, out, _ = lemon(capsys, "diff", folder, tmp_path / "out")
    assert code == 0 and "bit-equal" in out, out


def test_stage_1_notes_no_frozen_parameters(tmp_path):
    """They are in the module and in no group."""
    before = of_every_dtype()
    folder = foreign(tmp_path / "small", before, LAYOUTS["1 on 2"])
    path = folder / "mp_rank_00_model_states.pt"
    model = torch.load(path, weights_only=False)
    torch.save({**model, "frozen_param_shapes": None, "frozen_param_fragments": None}, path)
    after = checkpoints.raw(folder)
    assert set(after.frozen) == set(before.frozen)
    require_all(after.tensors, before.tensors)


def test_what_is_no_tensor_is_named(tmp_path, capsys):
    folder = foreign(tmp_path / "small", state(), LAYOUTS["1 on 2"])
    path = folder / "mp_rank_00_model_states.pt"
    model = torch.load(path, weights_only=False)
    model["module"]["block._extra_state"] = {"amax": 3}
    torch.save(model, path)
    code, out, _ = lemon(capsys, "reshard", folder, "--out", tmp_path / "out")
    assert code == 0 and "'block._extra_state' of the module holds no tensor and is left behind" in out


CHANGES = {
    "buffer's dtype": lambda held: replace(held, buffers={**held.buffers, **buffer("int64", VALUES["int64"].float())}),
    "buffer": lambda held: replace(held, buffers={**held.buffers, **buffer("scalar", torch.tensor(2**40))}),
    "complex": lambda held: replace(
        held, buffers={**held.buffers, **buffer("complex64", VALUES["complex64"].conj().resolve_conj())}
    ),
    "frozen dtype": lambda held: replace(held, tensors={**held.tensors, "frozen": halved(held.tensors["frozen"])}),
    "tied": lambda held: replace(held, aliases={"tied": "a"}),
    "scale": lambda held: replace(held, engine={"epoch": 3}),
    "client": lambda held: replace(held, engine={"note": {"best": torch.tensor([1.0])}}),
}


def buffer(name: str, value: Tensor) -> dict[str, LazyTensor]:
    return in_memory([(name, value)])


def halved(tensor: LazyTensor) -> LazyTensor:
    return in_memory([("frozen", tensor.tensor().double())])["frozen"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["1 on 2", "3 on 2", "universal"])
def test_diff_sees_every_change(tmp_path, capsys, name, change):
    before = of_every_dtype()
    one = foreign(tmp_path / "one", before, LAYOUTS[name])
    other = foreign(tmp_path / "other", CHANGES[change](before), LAYOUTS["1 on 2"])
    code, out, _ = lemon(capsys, "diff", one, other, "--json")
    assert code == 1 and not json.loads(out)["equal"], out
    assert "different" in lemon(capsys, "diff", one, other)[1]

"""Where the optimizer files say themselves where parameters lie, that is held against their shapes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout
from pipeline.checkpoints.layouts.slice_mappings import round_robin
from pipeline.checkpoints.state import Group, State
from tests.helpers.checkpoints import foreign, state
from tests.helpers.cli import lemon

LAYOUT = CheckpointLayout("zero", 2, 2)
ORDER = ("a", "b", "c")


def of_one_group(order: tuple[str, ...]) -> State:
    held = state()
    return replace(held, groups=(Group(order, held.groups[0].hyper),))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*optim_states.pt"))


def saved_round_robin(folder: Path) -> Path:
    """As DeepSpeed leaves it: flat tensors and shapes in the one order, mappings in the other."""
    foreign(folder, of_one_group(tuple(round_robin(ORDER, 2))), LAYOUT)
    plain = foreign(folder.with_name("plain"), of_one_group(ORDER), LAYOUT)
    for one, other in zip(shards(folder), shards(plain), strict=True):
        content, right = (torch.load(path, weights_only=False) for path in (one, other))
        mappings = right["optimizer_state_dict"]["param_slice_mappings"]
        content["optimizer_state_dict"]["param_slice_mappings"] = mappings
        torch.save(content, one)
    return folder


def test_round_robin_is_undone(tmp_path, capsys):
    assert round_robin(ORDER, 2) == ["a", "c", "b"]
    folder = saved_round_robin(tmp_path / "small")
    code, out, _ = lemon(capsys, "reshard", folder, "--out", tmp_path / "out")
    assert code == 0 and "load it with round_robin_gradients false" in out
    code, out, _ = lemon(capsys, "diff", tmp_path / "plain", tmp_path / "out")
    assert code == 0, out
    assert checkpoints.raw(tmp_path / "out").groups == of_one_group(ORDER).groups
    flats = [[torch.load(path, weights_only=False) for path in shards(tmp_path / name)] for name in ("out", "plain")]
    for ours, plain in zip(*flats, strict=True):
        kept = [content["optimizer_state_dict"]["single_partition_of_fp32_groups"][0] for content in (ours, plain)]
        assert torch.equal(*kept)


@pytest.mark.parametrize("change", ["length", "name", "order"])
def test_mappings_that_contradict_the_shapes_are_refused(tmp_path, capsys, change):
    folder = foreign(tmp_path / "small", of_one_group(ORDER), LAYOUT)
    for path in shards(folder):
        content = torch.load(path, weights_only=False)
        (mapping,) = content["optimizer_state_dict"]["param_slice_mappings"]
        if change == "length":
            next(iter(mapping.values())).numel -= 1
        elif change == "name":
            mapping["z"] = mapping.popitem()[1]
        else:
            content["optimizer_state_dict"]["param_slice_mappings"] = [dict(reversed(mapping.items()))]
        torch.save(content, path)
    code, _, err = lemon(capsys, "inspect", folder)
    assert code == 2 and f"{folder}: group 0" in err and "param_slice_mappings" in err and err.count("\n") == 1, err

"""What the options of `lemon reshard` leave open is as in the source: stage, ranks, precision, cuts of flats."""

from pathlib import Path

import pytest
import torch

import pipeline
from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout, describe, manifest
from pipeline.checkpoints.layouts import zero_write
from pipeline.checkpoints.layouts.zero_format import SUB_GROUP, sub_group_size, sub_groups
from pipeline.checkpoints.serialization.writer_pool import write_files
from tests.helpers.checkpoints import foreign, state
from tests.helpers.cli import lemon

SOURCES = [CheckpointLayout("zero", 3, 2, bf16=True), CheckpointLayout("zero", 2, 3), CheckpointLayout("zero", 1, 1)]


def facts(folder: Path) -> tuple[int, int, bool]:
    found = describe.layout_facts(folder)
    return found["zero_stage"], found["world_size"], found["bf16"]


@pytest.mark.parametrize("layout", SOURCES, ids=lambda layout: layout.words)
def test_the_sources_own_are_the_defaults(tmp_path, capsys, layout):
    folder = foreign(tmp_path / "small", state(), layout)
    own = layout.zero_stage, layout.world_size, layout.bf16
    for number, (options, expected) in enumerate(
        {
            (): own,
            ("--world-size", 4): (own[0], 4, own[2]),
            ("--zero-stage", 2): (2, *own[1:]),
            ("--bf16",): (*own[:2], True),
            ("--no-bf16",): (*own[:2], False),
        }.items()
    ):
        out = tmp_path / str(number)
        code, _, err = lemon(capsys, "reshard", folder, "--out", out, *options)
        assert code == 0 and facts(out) == expected, err
        assert manifest.read(out).bf16 is expected[2]
    assert facts(pipeline.reshard(folder, tmp_path / "python").path) == own


def test_fp32_sums_are_kept_where_there_is_a_place_for_them(tmp_path, capsys):
    folder = foreign(tmp_path / "small", state(), CheckpointLayout("zero", 1, 3, bf16=True, fp32_sums=True))
    kept = {(): True, ("--world-size", 4): True, ("--no-fp32-sums",): False}
    gone = {("--zero-stage", 2): False, ("--no-bf16",): False, ("--zero-stage", 0): False}
    for number, (options, expected) in enumerate((kept | gone).items()):
        out = tmp_path / str(number)
        code, _, err = lemon(capsys, "reshard", folder, "--out", out, *options)
        assert code == 0 and describe.layout_facts(out)["fp32_sums"] is manifest.read(out).fp32_sums is expected, err
    code, _, err = lemon(capsys, "reshard", folder, "--out", tmp_path / "no", "--zero-stage", 3, "--fp32-sums")
    assert code == 2 and "differ in ZeRO stage 1 and bf16 alone" in err and err.count("\n") == 1
    code, said, _ = lemon(capsys, "inspect", folder)
    assert "native ZeRO stage 1, 3 ranks, trained in bf16 with gradients summed in fp32" in " ".join(said.split())


def test_options_of_another_layout_are_refused(tmp_path, capsys):
    folder = foreign(tmp_path / "small")
    code, _, err = lemon(capsys, "reshard", folder, "--out", tmp_path / "out", "--format", "universal", "--no-bf16")
    assert code == 2 and "--no-bf16 belongs to --format zero, not to --format universal; leave it out" in err


def cut(folder: Path) -> list[list[str]]:
    path = next(folder.glob("*rank_0_mp_rank_00_model_states.pt"))
    return [list(group) for group in torch.load(path, weights_only=False)["param_shapes"]]


@pytest.mark.parametrize(
    "limit, flats", [(0, [["a"], ["b"], ["c"]]), (2, [["a"], ["b"], ["c"]]), (100, [["a"], ["b", "c"]])]
)
@pytest.mark.parametrize("said", [True, False])
def test_flats_are_cut_by_the_sources_limit(tmp_path, capsys, limit, flats, said):
    """Whether its config names the limit or its files alone show it."""
    folder = tmp_path / "small"
    folder.mkdir()
    write_files(zero_write.files(state(), folder, stage=3, world=2, sub_group=limit), folder)
    if said:
        for path in folder.glob("*model_states.pt"):
            model = torch.load(path, weights_only=False)
            torch.save({**model, "ds_config": {"zero_optimization": {"sub_group_size": limit}}}, path)
    assert cut(folder) == flats
    assert lemon(capsys, "reshard", folder, "--out", tmp_path / "out", "--world-size", 2)[0] == 0
    assert cut(tmp_path / "out") == flats
    kept = checkpoints.raw(tmp_path / "out")
    assert all(torch.equal(kept.tensors[name].tensor(), tensor.tensor()) for name, tensor in state().tensors.items())


def test_the_limit_goes_along_through_layouts_without_one(tmp_path, capsys):
    """In the config of the source's engine, which cuts by it again."""
    folder = tmp_path / "small"
    folder.mkdir()
    write_files(zero_write.files(state(), folder, stage=3, world=2, sub_group=2), folder)
    for path in folder.glob("*model_states.pt"):
        model = torch.load(path, weights_only=False)
        torch.save({**model, "ds_config": {"zero_optimization": {"sub_group_size": 2}}}, path)
    ways = (["--zero-stage", 1], ["--format", "universal"], ["--zero-stage", 3, "--world-size", 2])
    for number, way in enumerate(ways):
        out = tmp_path / str(number)
        code, _, err = lemon(capsys, "reshard", folder, "--out", out, *way)
        assert code == 0, err
        folder = out
    assert cut(folder) == cut(tmp_path / "small") == [["a"], ["b"], ["c"]]


def test_the_limit_that_cuts_so():
    assert sub_group_size([[[4, 4], [4]]], 1, None) == 8
    assert sub_group_size([[[4, 4], [4]]], 1, 5) == 5
    assert sub_group_size([[[4, 4], [4]]], 1, 3) == 8
    assert sub_group_size([[[4, 4, 4]]], 2, None) == SUB_GROUP
    assert sub_group_size([[[4], [4, 4]]], 1, None) is None
    assert sub_groups([4, 4, 4], 2, 0) == [1, 1, 1]

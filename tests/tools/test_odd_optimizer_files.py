"""Optimizer files that do not hold what their optimizer keeps: carried, named, or refused, and never filled in."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout, diff, integrity, reshard
from pipeline.checkpoints.layouts import whole_matrices
from pipeline.checkpoints.state import State
from pipeline.errors import UserError
from tests.helpers.checkpoints import by_muon, source

TWO_RANKS = CheckpointLayout("zero", 1, 2)
UNIVERSAL = CheckpointLayout("universal")
STAGE_0 = CheckpointLayout("zero", 0, 1)
TARGETS = [CheckpointLayout("zero", 2, 3), UNIVERSAL]
TO_EITHER = pytest.mark.parametrize("target", TARGETS, ids=["native", "universal"])


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[CheckpointLayout, Path]:
    """What DeepSpeed's Muon has left, natively on two ranks, as universal files, and of stage 0."""
    folder = tmp_path_factory.mktemp("muon")
    small, made = source(folder / "source", CheckpointLayout("zero", 1, 1)), {}
    for layout in (TWO_RANKS, UNIVERSAL, STAGE_0):
        made[layout] = by_muon(small, folder / f"{layout.name}-{layout.zero_stage}", layout)
        (made[layout] / "manifest.json").unlink()
    return made


@pytest.fixture
def native(sources, tmp_path) -> Path:
    return Path(shutil.copytree(sources[TWO_RANKS], tmp_path / "native"))


@pytest.fixture
def universal(sources, tmp_path) -> Path:
    return Path(shutil.copytree(sources[UNIVERSAL], tmp_path / "universal"))


def group(state: State, muon: bool) -> int:
    return next(number for number, each in enumerate(state.groups) if each.hyper["use_muon"] is muon)


def edit(folder: Path, ranks: tuple[int, ...], number: int, change: Callable[[dict], None]) -> None:
    """Change what ranks keep of a group."""
    for rank in ranks:
        path = folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        content = torch.load(path, weights_only=False)
        inner = content["optimizer_state_dict"]
        kept = inner["base_optimizer_state"]["state"][number]
        kept["numbers"] = inner["single_partition_of_fp32_groups"][number].numel() + inner["group_paddings"][number]
        change(kept)
        kept.pop("numbers", None)
        torch.save(content, path)


def resharded(folder: Path, target: CheckpointLayout) -> tuple[Path, list[str]]:
    """The result, and what is said of it."""
    plan, out = reshard.plan_reshard(folder, target), folder.parent / "out"
    reshard.execute_reshard(plan, out, 1)
    return out, reshard.remarks(plan)


def test_copies_of_a_matrix_that_differ_are_refused(native):
    """Two ranks have parts of it, and keep all of its momentum both."""

    def other(kept: dict) -> None:
        kept["momentum_buffer"] = kept["momentum_buffer"] + 1

    edit(native, (1,), group(checkpoints.raw(native), muon=True), other)
    with pytest.raises(UserError, match="shards of two checkpoints are mixed"):
        integrity.check(native)
    with pytest.raises(UserError, match="shards of two checkpoints are mixed"):
        resharded(native, TARGETS[0])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_its_momentum_is_refused(native, rank):
    edit(native, (rank,), group(checkpoints.raw(native), muon=True), dict.clear)
    with pytest.raises(UserError, match=f"momentum_buffer of rank {rank} holds 0 numbers"):
        checkpoints.raw(native)


@TO_EITHER
def test_a_momentum_that_is_nowhere_is_named(native, target):
    edit(native, (0, 1), group(checkpoints.raw(native), muon=True), dict.clear)
    _, said = resharded(native, target)
    assert any("'momentum_buffer' of 12 parameters" in line and "begins with zeros" in line for line in said)


@TO_EITHER
@pytest.mark.parametrize("muon, slot", [(True, "exp_avg"), (False, "momentum_buffer")])
def test_what_the_optimizer_does_not_keep_of_a_group_is_carried(native, target, muon, slot):
    """As of a script whose group was another optimizer's before."""

    def more(kept: dict) -> None:
        kept[slot] = torch.arange(1.0, 1.0 + kept["numbers"])

    edit(native, (0, 1), group(checkpoints.raw(native), muon), more)
    before = checkpoints.raw(native)
    out, _ = resharded(native, target)
    assert before.known_optimizer is None and diff.compare(native, out).equal
    assert set(checkpoints.raw(out).slots[slot]) == set(before.slots[slot])
    with pytest.raises(UserError, match=f"keeps '{slot}', which muon does not keep there"):
        before.optimizer()


def test_momentum_of_an_optimizer_in_host_memory_is_cut_as_the_weights(native):
    def cut(kept: dict) -> None:
        kept["momentum_buffer"] = torch.arange(1.0, 1.0 + kept["numbers"])

    number = group(checkpoints.raw(native), muon=True)
    edit(native, (0, 1), number, cut)
    state = checkpoints.raw(native)
    first = state.slots["momentum_buffer"][state.groups[number].names[0]]
    assert torch.equal(first.tensor().flatten(), torch.arange(1.0, 1.0 + first.numel))
    _, said = resharded(native, TARGETS[0])
    assert whole_matrices.BEGUN_ANEW in said
    native_again = reshard.remarks(reshard.plan_reshard(native.parent / "out", TARGETS[0]))
    assert whole_matrices.BEGUN_ANEW not in native_again


def test_a_file_that_its_parameter_has_alone_is_not_passed_over(universal):
    state = checkpoints.raw(universal)
    name = state.groups[group(state, muon=True)].names[0]
    shutil.copy(universal / "zero" / name / "momentum_buffer.pt", universal / "zero" / name / "exp_avg.pt")
    with pytest.raises(UserError, match=r"exp_avg of '.*' is missing"):
        integrity.check(universal)
    with pytest.raises(UserError, match=r"optimizer state 'exp_avg' of '.*' is missing"):
        resharded(universal, TARGETS[0])


def test_a_parameter_that_is_in_a_group_twice_is_refused(universal):
    path = universal / "zero" / "optimizer_state.pt"
    content = torch.load(path, weights_only=False)
    content["group_names"][-1].append(content["group_names"][-1][0])
    torch.save(content, path)
    with pytest.raises(UserError, match="is in optimizer groups twice"):
        checkpoints.raw(universal)


@pytest.mark.parametrize("scalars", [5, [1], {"mu": 3}])
def test_damaged_numbers_of_an_optimizer_are_refused(universal, scalars):
    path = universal / "zero" / "optimizer_state.pt"
    torch.save({**torch.load(path, weights_only=False), "scalars": scalars}, path)
    with pytest.raises(UserError, match="its 'scalars' are no mappings"):
        checkpoints.raw(universal)


@pytest.mark.parametrize("slot", ["fp32", "step.pt/..", "deep/m"])
def test_state_that_cannot_be_a_universal_file_is_refused_by_name(native, slot):
    """Another slot of that name would take the place of the weights; native files carry it."""

    def more(kept: dict) -> None:
        kept[slot] = torch.ones(kept["numbers"])

    for number in range(len(checkpoints.raw(native).groups)):
        edit(native, (0, 1), number, more)
    with pytest.raises(UserError, match="cannot be a file of a universal checkpoint; use --format zero"):
        resharded(native, UNIVERSAL)
    out, _ = resharded(native, TARGETS[0])
    assert slot in checkpoints.raw(out).slots


def test_the_order_of_muons_matrices_is_not_guessed(sources, tmp_path):
    """A plain script's file of stage 0 names no parameters, and before the first step no shapes."""
    folder = Path(shutil.copytree(sources[STAGE_0], tmp_path / "stage 0"))
    path = folder / "mp_rank_00_model_states.pt"
    content = torch.load(path, weights_only=False)
    del content["group_names"]
    content["optimizer"]["state"] = {}
    torch.save(content, path)
    with pytest.raises(UserError, match="Muon orders its matrices by shapes"):
        checkpoints.raw(folder)

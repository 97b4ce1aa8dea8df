"""What `auto` takes on devices that need no measurement."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from pipeline import config, data
from pipeline.errors import UserError
from pipeline.training import attention, compilation
from pipeline.training.process_group import World
from pipeline.training.stage import TrainingPlan, plan_training
from tests.helpers.runs import tiny_run

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def plan(tmp_path) -> TrainingPlan:
    loaded = config.load(tiny_run(tmp_path))
    data.prepare(loaded.data, loaded.seed, loaded.path / "data")
    return plan_training(loaded, loaded.training_stage("small"))


def unmeasured(*_: object) -> tuple[float, float]:
    raise AssertionError("a measurement was made")


@pytest.mark.parametrize(
    "device, zero_stage, fails, chosen",
    [(CPU, 1, False, False), (GPU, 1, False, True), (GPU, 1, True, False), (GPU, 3, False, False)],
)
def test_layers_are_compiled_on_gpus_where_all_ranks_can(monkeypatch, device, zero_stage, fails, chosen):
    """Under ZeRO-3 on none."""
    monkeypatch.setattr(compilation, "_fails_anywhere", lambda _: fails)
    assert compilation.choose(device, zero_stage) is chosen


def test_layers_of_zero_3_are_not_compiled_on_a_gpu(plan):
    stage = plan.stage.model_copy(update={"zero_stage": 3, "compile": True})
    with pytest.raises(UserError, match=r"stages.small.compile: compiled layers under ZeRO-3 had wrong gradients on a"):
        compilation.require(stage, GPU)


def test_gpus_take_torchs_attention(monkeypatch, plan):
    monkeypatch.setattr(attention, "measured", unmeasured)
    assert attention.choose(plan, World(0, 1, GPU)).attention == "sdpa"


def test_scores_that_the_memory_does_not_hold_are_not_tried(monkeypatch, plan, alone):
    """Two layers, three heads, 5 x 5 pairs of tokens, 8 bytes each, of 16 samples."""
    kept = 2 * 3 * 5 * 5 * 8 * 16
    assert attention.kept_scores(plan, 16) == kept
    monkeypatch.setattr(attention, "measured", lambda *_: (2.0, 1.0))
    for free, chosen in ((4 * kept, "eager"), (4 * kept - 4, "sdpa")):
        monkeypatch.setattr(attention.free_memory, "of_rank", lambda free=free: free)
        assert attention.choose(plan, World(0, 1, CPU)).attention == chosen

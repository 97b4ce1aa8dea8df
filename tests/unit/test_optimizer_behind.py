"""An expansion is written for the optimizer of the training behind it; a state that grows needs the same one there."""

from pathlib import Path

import pytest
import torch

from pipeline import checkpoints, config
from pipeline.checkpoints import CheckpointLayout
from pipeline.checkpoints.layouts.zero_files import tag_files
from pipeline.checkpoints.layouts.zero_format import open_file
from pipeline.config.schema import TrainStage
from pipeline.errors import UserError
from pipeline.expansion import expand, planning
from pipeline.growth import methods
from pipeline.optim.optimizers import SGD, AdamW, OptimizerSpec
from pipeline.training.start import continues_optimizer
from tests.helpers import cli
from tests.helpers.checkpoints import source
from tests.helpers.runs import tiny_run
from tests.helpers.samples import sample

LAYOUT = CheckpointLayout("zero", 1, 2)
ADAMW, MOMENTUM, PLAIN = AdamW(betas=(0.8, 0.9), weight_decay=0.2), SGD(momentum=0.7, weight_decay=0.2), SGD(momentum=0)


def expanded(start: Path, out: Path, optimizer: OptimizerSpec, layout: CheckpointLayout = LAYOUT, **how) -> Path:
    """One unit of the MLP more."""
    large = sample("bert-pre-ln", mlp=checkpoints.read(start)[1].intermediate_size + 1)
    plan = planning.plan_expansion(start, large, methods.parse(), layout, continued_by=optimizer, **how)
    return expand.execute_expansion(plan, out).path


def torch_loads(folder: Path, optimizer: OptimizerSpec) -> None:
    """torch's own optimizer takes a step from what the first rank's file holds."""
    shard = open_file(tag_files(folder).optimizers[0])["optimizer_state_dict"]
    sizes = zip(shard["single_partition_of_fp32_groups"], shard["group_paddings"], strict=True)
    flats = [torch.nn.Parameter(torch.zeros(weights.numel() + padding)) for weights, padding in sizes]
    built = optimizer.build([{"params": [flat]} for flat in flats], lr=0.1)
    built.load_state_dict(shard["base_optimizer_state"])
    for flat in flats:
        flat.grad = torch.ones_like(flat)
    built.step()


def stage(optimizer: OptimizerSpec, zero_stage: int = 1) -> TrainStage:
    return TrainStage.model_validate(
        {
            "kind": "train",
            "name": "large",
            "model": "large",
            "batch": 4,
            "schedule": {"kind": "constant", "peak": 1e-3, "horizon": "4 steps"},
            "optimizer": optimizer,
            "zero_stage": zero_stage,
        }
    )


def test_the_optimizer_behind_can_load_it_whatever_trained_the_source(tmp_path):
    place = source(tmp_path, LAYOUT)
    for number, optimizer in enumerate([MOMENTUM, ADAMW, PLAIN, ADAMW]):
        place = expanded(place, tmp_path / str(number), optimizer)
        state = checkpoints.raw(place)
        assert state.optimizer() == optimizer and set(state.slots) == {slot.name for slot in optimizer.slots}
        assert not any(tensor.tensor().any() for slot in state.slots.values() for tensor in slot.values())
        assert set(state.steps.values()) == ({0.0} if optimizer is ADAMW else set())
        torch_loads(place, optimizer)


def test_the_engine_loads_the_optimizer_of_its_own_kind_alone(tmp_path):
    place = expanded(source(tmp_path, LAYOUT), tmp_path / "large", MOMENTUM)
    loads = {spec: continues_optimizer(place, stage(spec), 2) for spec in (MOMENTUM, SGD(), PLAIN, ADAMW)}
    assert list(loads.values()) == [True, True, False, False]
    assert not continues_optimizer(place, stage(MOMENTUM), 3)
    assert not continues_optimizer(place, stage(MOMENTUM, zero_stage=2), 2)


@pytest.mark.parametrize("optimizer, stages", [(ADAMW, [1, 2, 3]), (MOMENTUM, [1, 2])], ids=["adamw", "sgd"])
def test_universal_goes_where_its_loader_knows_the_optimizer(tmp_path, optimizer, stages):
    place = expanded(source(tmp_path, LAYOUT), tmp_path / "large", optimizer, CheckpointLayout("universal"))
    assert [zero for zero in range(4) if continues_optimizer(place, stage(optimizer, zero), 2)] == stages


def test_a_state_does_not_grow_into_another_optimizer(tmp_path):
    with pytest.raises(
        UserError,
        match=r"small: the state is that of adamw \(exp_avg, exp_avg_sq\), and the stage behind trains with sgd "
        r"\(momentum_buffer\); use the same optimizer for both, or reset the state",
    ):
        expanded(source(tmp_path, LAYOUT), tmp_path / "large", MOMENTUM, moments="grow")


SGD_STAGE, AGAIN = "{kind: sgd, momentum: 0.8}", {"name": "grown-again", "kind": "expand", "model": "large"}
REFUSED = {
    "another kind": (
        ["stages.small.optimizer={kind: sgd}"],
        "the state is that of sgd (momentum_buffer), and the stage behind trains with adamw (exp_avg, exp_avg_sq)",
    ),
    "no state to grow": (
        ["stages.small.optimizer={kind: sgd, momentum: 0}", f"stages.large.optimizer={SGD_STAGE}"],
        "the state is that of sgd (without state), and the stage behind trains with sgd (momentum_buffer)",
    ),
    "no reader": (["stages.large.start=null"], "grow needs a training stage behind it"),
    "of two readers the second": (
        ["stages.scratch.start=grown", "stages.scratch.zero_stage=1", f"stages.scratch.optimizer={SGD_STAGE}"],
        "the state is that of adamw (exp_avg, exp_avg_sq), and the stage behind trains with sgd (momentum_buffer)",
    ),
}


@pytest.mark.parametrize("overrides, complaint", REFUSED.values(), ids=REFUSED)
def test_a_run_that_would_lose_the_grown_state_is_refused_before_anything_runs(tmp_path, capsys, overrides, complaint):
    code, _, error = cli.lemon(capsys, "run", tiny_run(tmp_path), "stages.grown.optimizer_state=grow", *overrides)
    assert code == 2 and complaint in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "data").exists()


def test_a_folder_is_asked_what_it_holds(tmp_path, capsys):
    """A source that is no stage of the run: its optimizer must be that of the stage behind, too."""
    held = source(tmp_path, LAYOUT, "vit")
    overrides = [
        "stages.grown.optimizer_state=grow",
        f"stages.grown.source={held}",
        f"stages.large.optimizer={SGD_STAGE}",
    ]
    code, _, error = cli.lemon(capsys, "run", tiny_run(tmp_path), *overrides)
    assert code == 2 and "the state is that of adamw (exp_avg, exp_avg_sq)" in error and error.count("\n") == 1


def test_training_behind_a_chain_of_expansions_is_found(tmp_path):
    loaded = config.load(tiny_run(tmp_path), ["stages.scratch.start=large"])
    again = [*loaded.model_dump(mode="json")["stages"][:2], {**AGAIN, "source": "grown"}]
    large = {**loaded.stages[2].model_dump(mode="json"), "start": "grown-again"}
    chained = config.Config.model_validate({**loaded.model_dump(mode="json"), "stages": [*again, large]})
    assert [stage.name for stage in chained.continued_by("small")] == ["large"]
    assert [stage.name for stage in chained.continued_by("grown")] == ["large"]
    assert chained.continued_by("large") == []

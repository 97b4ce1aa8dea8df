"""The largest micro-batch that fits, found before the first step, and kept."""

import json
import os
from unittest import mock

import pytest
import torch

from pipeline import config, data, models
from pipeline.accounting.memory import activations, model_states, parameter_groups
from pipeline.optim.optimizers import AdamW
from pipeline.training import free_memory
from pipeline.training.largest_micro_batch import SHARE, _batch, _passes, _tried, needed
from pipeline.training.losses import model_inputs
from pipeline.training.micro_batches import candidates
from pipeline.training.process_group import World
from pipeline.training.stage import plan_training
from tests.helpers import cli
from tests.helpers.cli import lemon_here
from tests.helpers.runs import BATCH, copied, losses, tiny_run

AUTO = "stages.small.micro_batch=auto"


def test_what_is_needed_grows_with_the_samples_alone(tmp_path):
    """In stage 1 whole gradients are kept besides, where a step has several micro-batches."""
    loaded = config.load(tiny_run(tmp_path), [AUTO, "stages.small.zero_stage=2"])
    data.prepare(loaded.data, loaded.seed, loaded.path / "data")
    plan = plan_training(loaded, loaded.training_stage("small"))
    sizes = candidates(plan.stage, 2)
    assert sizes == [8, 4, 2, 1]
    one, two, four = (needed(plan, 2, size) for size in (1, 2, 4))
    assert four - two == 2 * (two - one) > 0
    architecture = models.architecture_of(plan.model)
    states = model_states(
        parameter_groups(architecture, AdamW()), zero_stage=2, ranks=2, bf16=False, accumulates=True
    ).held
    positions = models.of_config(plan.model).positions(plan.model, plan.data.facts)
    passing = activations(architecture, positions, micro_batch=1, bf16=False)
    assert one > states + passing, "and the copy that is saved"


def test_the_passes_that_are_tried_are_those_of_the_stage(tmp_path):
    """With data and model of its own, here without a limit."""
    loaded = config.load(tiny_run(tmp_path), [AUTO, "stages.small.activation_checkpointing=true"])
    data.prepare(loaded.data, loaded.seed, loaded.path / "data")
    plan = plan_training(loaded, loaded.training_stage("small"))
    module = plan.subject.to_load(plan.model).module.train()
    four, device = _batch(plan, 4), torch.device("cpu")
    assert model_inputs(four, module, device)["pixel_values"].shape == (4, 1, 8, 8)
    assert _passes(module, four, device, beside=1000)
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here to run out of memory")
def test_a_gpu_takes_as_many_samples_as_it_gets_through(tmp_path):
    """What fits needs less than is free, by the formulas too; four times as many need more."""
    rate = {"peak": 1e-3, "horizon": "9 steps"}
    stage = {
        "kind": "train",
        "name": "small",
        "model": "small",
        "batch": 16384,
        "micro_batch": "auto",
        "schedule": rate,
    }
    sizes = {"family": "vit", "layers": 12, "hidden": 768, "heads": 12, "patch": 1}
    loaded = config.load(tiny_run(tmp_path, models={"small": sizes}, stages=[stage]))
    data.prepare(loaded.data, loaded.seed, loaded.path / "data")
    plan, device = plan_training(loaded, loaded.training_stage("small")), torch.device("cuda", 0)
    tried = candidates(plan.stage, 1)
    found = _tried(plan, World(0, 1, device), tried)
    assert found in tried[1:]
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0]
    assert needed(plan, 1, found) < free < needed(plan, 1, 4 * found)


def rank_1_may_take(bytes_: int):
    """Rank 0 has all that it wants. Workers are forks, which take this over."""

    def of_rank() -> int:
        return bytes_ if os.environ["RANK"] == "1" else 2**40

    return mock.patch.object(free_memory, "of_rank", of_rank)


def test_all_ranks_take_what_fits_on_each_and_keep_it(finished, tmp_path, capfd):
    path, run = copied(finished, tmp_path), tmp_path / "run"
    short = "stages.small.schedule.steps=6 steps"
    loaded = config.load(path, [AUTO])
    four = needed(plan_training(loaded, loaded.training_stage("small")), 2, 4)
    with rank_1_may_take(int(four / SHARE) + 1):
        code, said, _ = cli.lemon(capfd, "train", path, "--stage", "small", AUTO, short)
    assert code == 0 and "small: micro_batch auto: 4 of 8 samples a rank fit at a time" in said
    assert settings(run) == (4, BATCH)
    lemon_here("train", path, "--stage", "small", AUTO, "stages.small.schedule.steps=8 steps")
    assert settings(run) == (4, BATCH), "it goes on with what it began with"
    other = tmp_path / "stated"
    other.mkdir()
    lemon_here(
        "train",
        copied(finished, other),
        "--stage",
        "small",
        "stages.small.micro_batch=4",
        "stages.small.schedule.steps=8 steps",
    )
    ours, theirs = ([each for each in losses(where, "small") if each[1]] for where in (run, other / "run"))
    assert ours == theirs


def settings(run) -> tuple[int, int]:
    begun = json.loads((run / "small" / "stage.json").read_text())["settings"]
    return begun["micro_batch"], begun["batch"]


def test_what_never_fits_is_told(finished, tmp_path, capfd):
    path = copied(finished, tmp_path)
    with rank_1_may_take(10_000):
        code, _, said = cli.lemon(capfd, "train", path, "--stage", "small", AUTO)
    assert code == 2 and "Traceback" not in said
    assert "stages.small.micro_batch: auto: not even 1 samples fit beside model and optimizer; take another" in said

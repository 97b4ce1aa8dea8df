"""bf16-autocast and fp16: near float32, resumed to the bit, and what fp16's loss scale does is told."""

import json
import math
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
import yaml

from pipeline import checkpoints, reshard
from pipeline.checkpoints.layouts import CheckpointLayout
from pipeline.data import Batch
from pipeline.errors import UserError
from pipeline.records.run_folder import StageFolder
from pipeline.training.samples import StepSamples
from tests.helpers.cli import lemon, lemon_here
from tests.helpers.parity_task import BATCH, stage
from tests.helpers.rotation import rotated
from tests.helpers.runs import copied, entries, losses, steps_in_all, tiny_run

SCRIPT = "tests.helpers.scripts.engine_resume"
GRADIENTS = "tests.helpers.scripts.gradients:distance"
EVERY_SECOND_STEP = {"fp16": {"initial_scale_power": 10, "loss_scale_window": 2}}
TOO_LARGE = {"fp16": {"initial_scale_power": 24, "hysteresis": 1}}


@pytest.fixture
def fp16(workers):
    if not workers.supports(2, fp16=True):
        pytest.skip("DeepSpeed's accelerator does not support fp16 on this device")


def trained(workers, folder, *, built: str = "whole", **fields) -> dict:
    job = {"family": "bert-pre-ln", "stage": {"micro_batch": BATCH // 4, **fields}, "saved": 2, "steps": 4}
    return workers.run(f"{SCRIPT}:resumed", {**job, "folder": str(folder), "built": built}, world=2)


@pytest.fixture(scope="module")
def in_fp32(workers, tmp_path_factory) -> list[float]:
    return trained(workers, tmp_path_factory.mktemp("fp32"), zero_stage=1)["whole"]


@rotated(one_in=2, of="zero_stage")
@pytest.mark.parametrize("zero_stage, built", [(0, "whole"), (1, "whole"), (2, "whole"), (3, "initialized")])
def test_autocast_trains_near_fp32_and_is_resumed(workers, in_fp32, tmp_path, zero_stage, built):
    """5e-3: products of 8 bits of mantissa, of which the mean of a loss keeps a part (6e-4 were measured)."""
    told = trained(workers, tmp_path, built=built, zero_stage=zero_stage, precision="bf16-autocast")
    assert told["whole"] == pytest.approx(in_fp32, abs=5e-3)
    assert told["whole"] != pytest.approx(in_fp32, abs=1e-6), "products are in bf16"
    assert told["behind"] == told["whole"][2:]


def test_an_engine_behind_autocast_sums_as_it_says(workers, tmp_path):
    """DeepSpeed keeps for a process that an engine has had autocast."""
    trained(workers, tmp_path, zero_stage=2, precision="bf16-autocast")
    fields = {"zero_stage": 2, "precision": "bf16", "batch": 16, "micro_batch": 1, "optimizer": {"clip": 0.0}}
    assert workers.run(GRADIENTS, {"stage": fields, "samples": 16}, world=2)["distance"] < 1e-5


@pytest.mark.parametrize("zero_stage, built", [(1, "whole"), (2, "whole"), (3, "initialized")])
def test_fp16_trains_near_fp32(workers, fp16, in_fp32, tmp_path, zero_stage, built):
    """2e-2: weights and activations of 11 bits."""
    told = trained(workers, tmp_path, built=built, zero_stage=zero_stage, precision="fp16")
    assert told["whole"] == pytest.approx(in_fp32, abs=2e-2)
    assert told["whole"] != pytest.approx(in_fp32, abs=1e-6)


@rotated(one_in=2, of="zero_stage")
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_the_loss_scale_goes_on_where_it_was(workers, fp16, tmp_path, zero_stage):
    """Losses, norms and scales are those of an engine that was not interrupted, to the bit; resharded, the scale is the
    same, and the losses but for the order of sums."""
    fields = {"zero_stage": zero_stage, "precision": "fp16", "deepspeed": EVERY_SECOND_STEP}
    job = {"family": "vit", "stage": fields, "steps": 7}
    whole = workers.run(f"{SCRIPT}:scaled", job, world=2)
    workers.run(f"{SCRIPT}:scaled", {**job, "steps": 4, "save": str(tmp_path)}, world=2)
    saved = tmp_path / "step-0000004"
    assert workers.run(f"{SCRIPT}:scaled", {**job, "first": 4, "place": str(saved)}, world=2) == whole[4:]
    assert whole[6][2] > whole[3][2] > whole[0][2], "the scale has risen before the save, and behind it"
    reshard(saved, tmp_path / "other" / "step", CheckpointLayout.of(stage(**fields, micro_batch=1, batch=4), 1))
    again = {**job, "first": 4, "place": str(tmp_path / "other" / "step")}
    moved = workers.run(f"{SCRIPT}:scaled", again, world=1)
    assert [row[2] for row in moved] == [row[2] for row in whole[4:]]
    assert [row[0] for row in moved] == pytest.approx([row[0] for row in whole[4:]], abs=2e-2)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_a_step_behind_which_the_scale_rises_is_that_of_a_constant_scale(workers, fp16, tmp_path, zero_stage):
    """To the bit: DeepSpeed itself would divide its gradients by the scale of the next step."""
    norms, held = [], []
    for name, scale in (("follows", EVERY_SECOND_STEP), ("constant", {"fp16": {"loss_scale": 2.0**10}})):
        fields = {"zero_stage": zero_stage, "precision": "fp16", "deepspeed": scale}
        job = {"family": "vit", "stage": fields, "steps": 3, "save": str(tmp_path / name)}
        rows = workers.run(f"{SCRIPT}:scaled", job, world=2)
        state = checkpoints.raw(tmp_path / name / "step-0000003")
        held.append({key: tensor.tensor() for key, tensor in state.slots["exp_avg"].items()})
        assert rows[2][2] == (2.0**11 if name == "follows" else 2.0**10)
        norms.append([row[1] for row in rows])
    assert norms[0] == norms[1]
    assert all(torch.equal(tensor, held[1][key]) for key, tensor in held[0].items())


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_an_update_whose_gradients_overflow_is_left_out_and_told(workers, fp16, zero_stage):
    fields = {"zero_stage": zero_stage, "precision": "fp16", "deepspeed": TOO_LARGE}
    rows = workers.run(f"{SCRIPT}:scaled", {"family": "vit", "stage": fields, "steps": 12}, world=2)
    left_out = [row[3] is not None for row in rows]
    assert left_out[0] and not left_out[-1]
    for (loss, norm, scale, overflowed, same), before in zip(rows, [2.0**24, *(row[2] for row in rows)], strict=False):
        assert math.isfinite(loss)
        assert (overflowed, scale, same) == ((before, before / 2, True) if overflowed else (None, before, False))
        assert math.isfinite(norm) is not bool(overflowed)


@pytest.mark.parametrize("scale, first", [(EVERY_SECOND_STEP, 2.0**10), ({"fp16": {"loss_scale": 128.0}}, 128.0)])
def test_a_checkpoint_of_another_precision_does_not_bring_its_scale(workers, fp16, tmp_path, scale, first):
    plain = {"family": "vit", "stage": {"zero_stage": 1}, "steps": 2, "save": str(tmp_path)}
    workers.run(f"{SCRIPT}:scaled", plain, world=2)
    place = {"place": str(tmp_path / "step-0000002"), "first": 2, "steps": 4}
    fields = {"zero_stage": 1, "precision": "fp16", "deepspeed": scale}
    rows = workers.run(f"{SCRIPT}:scaled", {**plain, **place, "stage": fields, "save": str(tmp_path / "fp16")}, world=2)
    assert rows[0][2] == first
    back = {"place": str(tmp_path / "fp16" / "step-0000004"), "first": 4, "steps": 5}
    assert workers.run(f"{SCRIPT}:scaled", {**plain, **back}, world=2)[0][2] == 1.0


def test_a_scale_that_cannot_fall_ends_the_run_in_one_line(workers, fp16):
    least = {"fp16": {"initial_scale_power": 24, "hysteresis": 1, "min_loss_scale": 2**24}}
    fields = {"zero_stage": 1, "precision": "fp16", "deepspeed": least}
    with pytest.raises(AssertionError, match="ScaleAtMinimumError: stage 't': gradients are not finite in fp16"):
        workers.run(f"{SCRIPT}:scaled", {"family": "vit", "stage": fields, "steps": 1}, world=2)


def test_the_step_at_which_the_scale_cannot_fall_counts(fp16, finished, tmp_path, capfd):
    """It was computed, and the one begun behind it was not: the ledger keeps its FLOPs when the stage goes on."""
    path, run = copied(finished, tmp_path), tmp_path / "run"
    least = "{fp16: {initial_scale_power: 24, hysteresis: 1, min_loss_scale: 16777216}}"
    stage = ("train", path, "--stage", "small", "stages.small.precision=fp16", "processes=1")
    code, _, said = lemon(capfd, *stage, f"stages.small.deepspeed={least}")
    assert code == 2 and "gradients are not finite in fp16 at the least loss scale" in said
    other = ("stages.small.deepspeed={fp16: {loss_scale: 1024}}", "--allow", "deepspeed")
    lemon_here(*stage, *other, "stages.small.schedule.steps=3 steps")
    assert [entry["step"] for entry in entries(run, "small") if entry["kind"] == "restart"] == [-1]
    assert steps_in_all(run, "small") == 1 + 3


def test_a_step_whose_samples_cannot_be_read_does_not_count(finished, tmp_path, capfd):
    """Nothing of it was computed. Workers are forks, which take this over."""
    of = StepSamples.of

    def damaged(samples: StepSamples, step: int) -> Iterator[Batch]:
        for batch in of(samples, step):
            if step == 2:
                raise UserError("image 7 cannot be decoded")
            yield batch

    stage = ("train", copied(finished, tmp_path), "--stage", "small", "processes=1")
    with mock.patch.object(StepSamples, "of", damaged):
        code, _, said = lemon(capfd, *stage)
    assert code == 2 and "image 7 cannot be decoded" in said
    assert StageFolder(tmp_path / "run" / "small").counter.read() == 2


@pytest.mark.slow
def test_a_run_in_all_of_them(fp16, tmp_path):
    """The overflows of fp16 are events of steps that count; what was trained in it is expanded, and trained on under
    autocast; ZeRO-3 builds its model cut, and its optimizer works in host memory."""
    settings = {
        "small": {"precision": "fp16", "deepspeed": {"fp16": {"initial_scale_power": 22, "hysteresis": 1}}},
        "large": {"precision": "bf16-autocast"},
        "scratch": {"precision": "bf16", "deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}},
    }
    config = yaml.safe_load(tiny_run(tmp_path).read_text())
    for each in config["stages"]:
        each |= settings.get(each["name"], {})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    lemon_here("run", tmp_path / "tiny.yaml")
    run = tmp_path / "run"
    events = [json.loads(line) for line in (run / "small" / "events.jsonl").read_text().splitlines()]
    assert {event["problem"] for event in events} == {"overflow"} and events[0]["value"] == 2.0**22
    assert [event["step"] for event in events] == list(range(1, len(events) + 1))
    for name, fields in settings.items():
        facts = json.loads((run / name / "stage.json").read_text())
        assert facts["status"] == "finished"
        assert {key: facts["settings"][key] for key in fields} == fields
        assert len([loss for _, loss, _ in losses(run, name) if loss is not None]) == facts["steps"]
    assert "gradients infinite in fp16 by a loss scale of 4.1943e+06" in (run / "report.html").read_text()

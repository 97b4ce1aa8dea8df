"""A stage goes on with other ranks, another ZeRO stage or another precision: by itself, and with the numbers of the run
that nobody interrupted."""

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import checkpoints
from pipeline.data import batches
from pipeline.training import device_precisions, loop
from tests.helpers.cli import lemon, lemon_here
from tests.helpers.killed import run_killed
from tests.helpers.launched import of_srun, task
from tests.helpers.ports import free_port
from tests.helpers.processes import Ended
from tests.helpers.runs import STEPS, copied, interrupted, records

LONG = "stages.small.schedule.horizon=50 steps"
LAYOUT = ("world_size", "zero_stage", "precision")
TOLERANCE = 1e-5
"""Of a loss: other ranks and stages sum in another order (1e-7 a step was seen)."""


def training_losses(folder: Path, stage: str = "small") -> list[float]:
    return [record["loss"] for record in records(folder / "run", stage) if "loss" in record]


def starts(folder: Path) -> list[tuple]:
    """(step, ranks, ZeRO stage, precision) of each start of the stage."""
    told = json.loads((folder / "run" / "small" / "stage.json").read_text())["starts"]
    return [
        (each["step"], *(each["settings"][key] for key in ("world_size", "zero_stage", "precision"))) for each in told
    ]


@contextmanager
def watched(folder: Path, until: int | None = None):
    """Workers that are forked inside note which rows they read, and are asked to stop at step `until`."""
    finished, located = loop.Loop._finish, batches.locate

    def finish(self, done):
        result = finished(self, done)
        self.stop = self.stop or done.step == until
        return result

    def locate(seed, numbers, size):
        epochs, rows = located(seed, numbers, size)
        with (folder / "read").open("a") as file:
            file.write(json.dumps([int(numbers[0]), epochs.tolist(), rows.tolist()]) + "\n")
        return epochs, rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "_finish", finish)
        patch.setattr(batches, "locate", locate)
        yield


def stream(folder: Path) -> str:
    """The hash of all samples that were trained on, in the order of their numbers."""
    lines = sorted(json.loads(line) for line in (folder / "read").read_text().splitlines())
    assert [first for first, *_ in lines] == sorted({first for first, *_ in lines}), "none was read twice"
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


@pytest.mark.slow  # part of .ci/run
def test_two_ranks_then_one_then_two_and_zero_1_then_3_then_2(finished, tmp_path, capfd):
    """50 steps of 4 micro-batches, dropout on, against the same without an interruption. The size of the micro-batches
    is set at the first start alone."""
    plain, changed = tmp_path / "plain", tmp_path / "changed"
    first = [LONG, "stages.small.micro_batch=4", "stages.small.zero_stage=1"]
    for folder in (plain, changed):
        folder.mkdir()
        path = copied(finished, folder)
        with watched(folder, until=18 if folder is changed else None):
            code, *_ = lemon(capfd, "train", path, "--stage", "small", *first)
        assert code == (85 if folder is changed else 0)
    with watched(changed, until=33):
        code, said, _ = lemon(
            capfd, "train", path, "--stage", "small", LONG, "stages.small.zero_stage=3", "processes=1"
        )
    copy = changed / "run" / "small" / "resharded" / "step-0000018-zero3x1"
    assert code == 85 and f"written as native ZeRO stage 1, 2 ranks, was resharded to {copy}; kept are sample" in said
    assert "kept are sample order, dropout, schedule, and 4 micro-batches of 4 samples a step\n" in said
    with watched(changed):
        lemon_here("train", path, "--stage", "small", LONG, "stages.small.zero_stage=2")
    assert stream(changed) == stream(plain)
    assert len(training_losses(plain)) == 50
    assert training_losses(changed) == pytest.approx(training_losses(plain), abs=TOLERANCE)
    assert starts(changed) == [(0, 2, 1, "fp32"), (18, 1, 3, "fp32"), (33, 2, 2, "fp32")]
    assert not copy.parent.exists(), "a newer checkpoint was saved"


SLOW = pytest.mark.slow
OTHERS = {"stage 0": ["stages.small.zero_stage=0", "processes=1"], "stage 3": ["stages.small.zero_stage=3"]}


@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS)
def test_from_stage_2_to_another(finished, tmp_path, others):
    path = interrupted(finished, tmp_path, "small", 20)
    lemon_here("train", path, "--stage", "small", *others)
    before, after = training_losses(finished), training_losses(tmp_path)
    assert after[:20] == before[:20] and after[20:] == pytest.approx(before[20:], abs=TOLERANCE)


READERS = {
    "one rank": ("large", ["processes=1"], STEPS / 2),
    "stage 0": ("large", ["stages.large.zero_stage=0"], STEPS / 2),
    "a second reader": ("scratch", ["stages.scratch.start=grown"], STEPS),
}


@pytest.mark.parametrize("reader", [each if each == "one rank" else pytest.param(each, marks=SLOW) for each in READERS])
def test_a_grown_state_goes_on(finished, tmp_path, reader):
    """Written for the stage behind it on two ranks, loaded in another layout: AdamW counts on from the steps of the
    small model."""
    stage, others, steps = READERS[reader]
    path, grow = copied(finished, tmp_path, "small"), "stages.grown.optimizer_state=grow"
    lemon_here("train", path, "--stage", "grown", grow, *(others if reader != "one rank" else ()))
    lemon_here("train", path, "--stage", stage, grow, *others)
    held = checkpoints.raw(checkpoints.locate(tmp_path / "run" / stage))
    assert set(held.steps.values()) == {STEPS + steps}


@pytest.mark.slow
def test_another_precision_only_where_it_is_allowed(finished, tmp_path, capfd):
    if "bf16" not in device_precisions.supported_precisions():
        pytest.skip("DeepSpeed does not support bf16 on this device")
    path = interrupted(finished, tmp_path, "small", 20)
    command = ["train", path, "--stage", "small", "stages.small.precision=bf16"]
    code, _, error = lemon(capfd, *command)
    assert code == 2 and error.count("\n") == 1
    assert "stage.precision was fp32, is now bf16; go on with it all the same (--allow precision), take" in error
    assert lemon(capfd, *command, "--allow", "precision")[0] == 0
    assert starts(tmp_path) == [(0, 2, 2, "fp32"), (20, 2, 2, "bf16")]
    before, after = training_losses(finished), training_losses(tmp_path)
    assert after[20:] == pytest.approx(before[20:], abs=3e-2) and after[20:] != pytest.approx(before[20:], abs=1e-6)
    code, _, error = lemon(capfd, *command[:-1], "--allow", "precision")
    assert code == 2 and "stage.precision was bf16, is now fp32; take another folder" in error, "it is finished"


def test_ranks_that_do_not_divide_the_micro_batches_are_refused(finished, tmp_path, capsys):
    path = interrupted(finished, tmp_path, "small", 20)
    others = ["stages.large.batch=48", "stages.scratch.batch=48"]
    code, _, error = lemon(capsys, "train", path, "--stage", "small", "processes=3", *others)
    assert code == 2 and error.count("\n") == 1
    assert "the 2 micro-batches of 8 samples a step do not divide among 3 ranks; start it on 1 or 2, or set" in error


@pytest.mark.slow  # part of .ci/run
@pytest.mark.parametrize("point", ["midway", "renamed"])
def test_killed_while_it_reshards(finished, tmp_path, point):
    path, other = interrupted(finished, tmp_path, "small", 20), "stages.small.zero_stage=1"
    killed = run_killed(point, "train", path, "--stage", "small", other, said=tmp_path / "said")
    assert killed.code == -9
    lemon_here("train", path, "--stage", "small", other)
    assert training_losses(tmp_path) == pytest.approx(training_losses(finished), abs=TOLERANCE)
    assert starts(tmp_path) == [(0, 2, 2, "fp32"), (20, 2, 1, "fp32")]


@pytest.mark.slow  # part of .ci/run
def test_workers_of_another_launcher_wait_for_rank_0(finished, tmp_path):
    """`lemon train` as one of two tasks of a step: rank 0 writes what both load."""
    path, port = interrupted(finished, tmp_path, "small", 20), free_port()
    command = ("train", path, "--stage", "small", "stages.small.zero_stage=3")
    tasks = [task(tmp_path / f"said-{rank}", of_srun(rank, port), *command) for rank in range(2)]
    assert [each.end() for each in tasks] == [Ended(0, ""), Ended(0, "")]
    assert training_losses(tmp_path) == pytest.approx(training_losses(finished), abs=TOLERANCE)
    assert starts(tmp_path) == [(0, 2, 2, "fp32"), (20, 2, 3, "fp32")]

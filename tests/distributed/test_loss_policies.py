"""A loss or a gradient norm out of bounds, on two ranks: skipped updates, rewinds, and what a resumed run does."""

import json
import math
import time
from pathlib import Path
from unittest import mock

import pytest

from pipeline.report import build
from pipeline.training.save_in_flight import SaveInFlight
from tests.helpers import cli, runs
from tests.helpers.cli import lemon_here
from tests.helpers.parity_task import BATCH
from tests.helpers.poisoned_runs import command, events, poisoned
from tests.helpers.rotation import rotated
from tests.helpers.runs import STEPS, ledger, losses, records, steps_in_all

SCRIPT = "tests.helpers.scripts.loss_policies"
BF16 = {"precision": "bf16"}
FIELDS = [
    *({"zero_stage": stage} for stage in range(4)),
    {"zero_stage": 0, **BF16, "gradient_sums": "bf16"},
    *({"zero_stage": stage, **BF16} for stage in (1, 2)),
]

REWIND = ("stages.small.stability.not_finite=rewind", "stages.small.zero_stage=3")
"""Under ZeRO-3, whose engine leaves most behind when another is built in its process."""


@rotated(one_in=3, of="fields")
@pytest.mark.parametrize("poison", [False, True], ids=["finite", "nan"])
@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_a_skipped_update_leaves_no_trace(workers, fields, poison):
    job = {"stage": {"micro_batch": BATCH // 4, **fields}, "poison": poison}
    result = workers.run(f"{SCRIPT}:skipping", job, world=2)
    assert result["equal"] == result["tensors"] > 20
    assert math.isfinite(result["loss"]) is not poison
    assert math.isfinite(result["norm"]) is not poison


def newest(run: Path) -> Path:
    return max((run / "small" / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_rewound_run_and_one_that_was_killed_behind_its_rewinds_end_alike(tmp_path, capfd):
    """Saved at steps 5, 10, 15, …; poisoned are step 3, behind which the stage begins anew, later step 12 and, behind
    the rewind, step 13."""
    poison = 2, 14, 17
    plain, run = command(tmp_path / "plain", *REWIND)
    with poisoned(*poison):
        lemon_here(*plain)
    rewinds = [(3, "nan", "rewind", 0, 3), (12, "nan", "rewind", 10, 15), (13, "nan", "rewind", 10, 18)]
    assert events(run) == rewinds
    assert steps_in_all(run, "small") == STEPS + 3 + 2 + 3
    again, other = command(tmp_path / "killed", *REWIND)
    began = time.time()
    with poisoned(*poison, killed_at=25):  # in step 18, two behind its checkpoint
        code, _, said = cli.lemon(capfd, *again)
    assert code != 0 and "SIGKILL" in said
    with poisoned(*poison):
        lemon_here(*again)
    assert events(other) == rewinds
    assert losses(other, "small") == losses(run, "small") and ledger(other, "small") == ledger(run, "small")
    assert cli.lemon(capfd, "diff", newest(other), newest(run))[0] == 0
    provenance = json.loads((newest(other) / "manifest.json").read_text())["provenance"]
    assert provenance["samples"]["next"] == (STEPS + 3 + 2 + 3) * runs.BATCH, "what was left out counts as read"
    assert steps_in_all(other, "small") == steps_in_all(run, "small") + 2
    (told,) = build([other]).runs[0].wall_time
    assert told.starts == 5 and told.rows["lost"] > 0 and told.rows["waiting"] > 0 and 0 < told.goodput < 1
    times = [json.loads(line) for line in (other / "small" / "times.jsonl").read_text().splitlines()]
    assert told.seconds == pytest.approx(times[-1]["until"] - times[0]["began"], rel=0.01), "the rows, and the clock"
    assert told.seconds < time.time() - began


def test_a_stage_that_ended_on_a_nan_goes_on_with_another_policy(tmp_path, capfd):
    train, run = command(tmp_path / "run-of-nan")
    with poisoned(11):
        code, _, said = cli.lemon(capfd, *train)
        assert code == 2 and "loss nan" in said and "at step 12" in said
        lemon_here(*train, "stages.small.stability.not_finite=skip")
    assert events(run) == [(12, "nan", "abort", None, None), (12, "nan", "skip", None, None)]
    assert steps_in_all(run, "small") == STEPS + 2
    assert [step for step, loss, _ in losses(run, "small") if loss is not None and math.isnan(loss)] == [12]


def test_a_warning_goes_on_without_the_update(tmp_path, capfd):
    """Its step has the norm that it had, and the weights behind it are numbers: the stage saves, and ends."""
    train, run = command(tmp_path / "run-of-nan", "stages.small.zero_stage=0", "stages.small.stability.not_finite=warn")
    with poisoned(11):
        lemon_here(*train)
    assert events(run) == [(12, "nan", "warn", None, None)]
    norms = {record["step"]: record["grad_norm"] for record in records(run, "small") if "grad_norm" in record}
    assert len(norms) == STEPS and [step for step, norm in norms.items() if not math.isfinite(norm)] == [12]


@pytest.mark.slow
def test_a_rewind_waits_for_the_save_in_flight(tmp_path):
    """Step 11 is poisoned while the checkpoint of step 10 is still being written, which is the one to go back to."""
    train, run = command(tmp_path / "run-of-nan", *REWIND)
    write = SaveInFlight._write

    def slowly(flight: SaveInFlight) -> None:
        time.sleep(2.0)
        write(flight)

    with poisoned(10), mock.patch.object(SaveInFlight, "_write", slowly):
        lemon_here(*train)
    assert events(run) == [(11, "nan", "rewind", 10, 11)]
    assert steps_in_all(run, "small") == STEPS + 1
    saves = map(json.loads, (run / "small" / "metrics.jsonl").read_text().splitlines())
    assert [save["step"] for save in saves if save["kind"] == "save"] == [5, 10, 15, 20, 24]

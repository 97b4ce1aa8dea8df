"""What a stage measures as trackers show it: under Composer's names, each step once and in order, after kills too."""

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import TrainFacts
from pipeline.records.stage_records import EvaluationRecord, SaveRecord, TrainingRecord
from pipeline.training import trackers
from pipeline.training.trackers import tracked
from pipeline.training.trackers.composer_names import ComposerNames
from tests.helpers.invented_runs import SETTINGS, SMALL, common
from tests.helpers.required import require_module
from tests.helpers.tracked_runs import tensorboard_values, wandb_records, wandb_rows

STEPS = 12
AT = 5
"""The checkpoint from which a killed stage goes on."""


def facts(**more) -> TrainFacts:
    """A stage on two ranks that has gone on from step 5 on four."""
    of_start = {"device": "CPU", "flops_per_step": {"train": 600, "recompute": 50}, "versions": {}}
    starts = [{**of_start, "step": step, "settings": {**SETTINGS, "world_size": n}} for step, n in ((0, 2), (AT, 4))]
    content = {**common("small", SMALL), **starts[0], "starts": starts, "origin": None, "start": None, "steps": STEPS}
    return TrainFacts(**{**content, "schedule": {}, "samples_per_step": 4, "tokens_per_step": 32, **more})


def step_record(step: int, loss: float | None = None) -> TrainingRecord:
    """Half a second a step."""
    return TrainingRecord(
        step=step,
        loss=loss or 3 + 1 / step,
        lr=1e-3 * step,
        grad_norm=0.5,
        seconds=0.5,
        samples_per_second=8.0,
        tokens_per_second=64.0,
        mfu=0.25,
        window=2,
    )


def test_a_step_has_composers_names():
    """Written out from Composer's own docs: rates over all devices, and over each; times in hours."""
    names = ComposerNames(facts(), "text")
    names.of(EvaluationRecord(step=0, eval_loss=4.0, evaluation_seconds=7.2))
    names.of(step_record(2))
    assert names.of(step_record(4)) == pytest.approx(
        {
            "loss/train/total": 3.25,
            "lr-AdamW/group0": 0.004,
            "l2_norm/grad/global": 0.5,
            "throughput/batches_per_sec": 2.0,
            "throughput/samples_per_sec": 8.0,
            "throughput/tokens_per_sec": 64.0,
            "throughput/flops_per_sec": 1200.0,
            "throughput/device/batches_per_sec": 1.0,
            "throughput/device/samples_per_sec": 4.0,
            "throughput/device/tokens_per_sec": 32.0,
            "throughput/device/flops_per_sec": 600.0,
            "throughput/device/mfu": 0.25,
            "time/batch": 4,
            "time/sample": 16,
            "time/token": 128,
            "time/train": 2.0 / 3600,
            "time/val": 7.2 / 3600,
            "time/total": 9.2 / 3600,
        }
    )


def test_speeds_of_a_device_count_the_ranks_of_their_start():
    names = ComposerNames(facts(), "text")
    assert [names.of(step_record(step))["throughput/device/samples_per_sec"] for step in (AT, AT + 1)] == [4.0, 2.0]


def test_evaluations_have_the_names_of_composers_metrics():
    text, images = ComposerNames(facts(), "text"), ComposerNames(facts(tokens_per_step=0), "images")
    assert text.of(EvaluationRecord(step=3, eval_loss=2.0, perplexity=7.4)) == {
        "metrics/eval/LanguageCrossEntropy": 2.0,
        "metrics/eval/LanguagePerplexity": 7.4,
    }
    assert images.of(EvaluationRecord(step=3, eval_loss=2.0, top1=0.5)) == {
        "metrics/eval/CrossEntropy": 2.0,
        "metrics/eval/MulticlassAccuracy": 0.5,
    }
    assert not [name for name in images.of(step_record(1)) if "token" in name]


def test_what_is_not_measured_has_no_value():
    record = step_record(1).model_copy(update={"mfu": None, "grad_norm": None})
    names = set(ComposerNames(facts(), "text").of(record))
    assert not names & {"throughput/device/mfu", "l2_norm/grad/global"}


@pytest.mark.parametrize(
    "optimizer, name",
    [
        ({"kind": "sgd"}, "lr-SGD/group0"),
        ({"kind": "adamw", "rates": {"hidden": 1.0}}, "lr-AdamW/group0"),
        ({"kind": "adamw", "rates": {"hidden": 0.5}}, "lemon/lr/schedule"),
        ({"kind": "muon"}, "lemon/lr/schedule"),
    ],
)
def test_a_rate_is_called_that_of_a_group_only_where_it_is(optimizer, name):
    of_stage = facts(settings={**SETTINGS, "optimizer": optimizer})
    values = ComposerNames(of_stage, "text").of(step_record(1))
    assert values[name] == 1e-3 and len([each for each in values if "lr" in each.split("/")[0] or "/lr" in each]) == 1


def test_what_composer_does_not_know_has_a_name_of_our_own():
    assert ComposerNames(facts(), "text").of(SaveRecord(step=5, save_seconds=1.0, published_seconds=3.0)) == {
        "lemon/save/step": 5,
        "lemon/save/pause_seconds": 1.0,
        "lemon/save/published_seconds": 3.0,
    }


def train(folder: StageFolder, names: tuple, first: int, last: int, kill: bool = False) -> None:
    """The steps from `first` to `last`, evaluated at every third. What the save of step 5 took is known behind step 7,
    of the first process alone."""
    begun = -1 if first == 1 else first - 1
    folder.metrics.truncate(begun)
    with ExitStack() as stack:
        open_trackers = stack.enter_context(tracked(folder, names, "run", "text", begun))
        for step in range(first, last + 1):
            records = [step_record(step, 3 + 1 / step + (100 if kill and step > AT else 0))]
            records += [EvaluationRecord(step=step, eval_loss=float(step), evaluation_seconds=1.0)] * (step % 3 == 0)
            records += [SaveRecord(step=AT, save_seconds=1.0)] * (first == 1 and step == 7)
            for record in records:
                folder.metrics.append(record)
                open_trackers.add(record)
        if kill:
            stack.pop_all()


def killed_and_gone_on(path: Path, names: tuple) -> StageFolder:
    """A process that dies behind step 8, with other losses behind its checkpoint, and another that ends the stage."""
    folder = StageFolder(path / "small")
    folder.begin(facts())
    script = (
        "import os, sys; from pathlib import Path; from pipeline.records.run_folder import StageFolder;"
        "from tests.unit.test_trackers import train;"
        f"train(StageFolder(Path({str(folder.path)!r})), {names!r}, 1, 8, kill=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    train(folder, names, AT + 1, STEPS)
    return folder


def test_tensorboard_shows_each_step_once_though_some_were_done_again(tmp_path):
    require_module("tensorboard", "tensorboard")
    folder = killed_and_gone_on(tmp_path, ("tensorboard",))
    values = tensorboard_values(folder.path / "tensorboard")
    assert values["loss/train/total"] == [(step, pytest.approx(3 + 1 / step)) for step in range(1, STEPS + 1)]
    assert values["metrics/eval/LanguageCrossEntropy"] == [(step, step) for step in (3, 6, 9, 12)]
    assert values["lemon/save/step"] == [(AT, AT)]
    assert values["time/train"][-1][1] == pytest.approx(STEPS / 3600)
    assert set(values) == {name for record in folder.metrics for name in ComposerNames(facts(), "text").of(record)}


def test_tensorboard_asked_for_later_shows_the_steps_before(tmp_path):
    """As of a stage that an earlier release began, with names of its own in its event file."""
    require_module("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    folder = StageFolder(tmp_path / "small")
    folder.begin(facts())
    train(folder, (), 1, AT)
    with SummaryWriter(str(folder.path / "tensorboard")) as writer:
        writer.add_scalar("train/loss", 3.0, 1)
    train(folder, ("tensorboard",), AT + 1, STEPS)
    values = tensorboard_values(folder.path / "tensorboard")
    assert [step for step, _ in values["loss/train/total"]] == list(range(1, STEPS + 1))
    assert values["metrics/eval/LanguageCrossEntropy"] == [(step, step) for step in (3, 6, 9, 12)]


def offline_run(folder: StageFolder) -> Path:
    (file,) = (folder.path / "wandb").glob("offline-run-*/*.wandb")
    return file


def test_wandb_holds_each_step_once_in_one_run_though_some_were_done_again(tmp_path, monkeypatch):
    require_module("wandb", "wandb")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = killed_and_gone_on(tmp_path, ("wandb",))
    rows = wandb_rows(offline_run(folder))
    assert [row["_step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["loss/train/total"] for row in rows] == [pytest.approx(3 + 1 / step) for step in range(1, STEPS + 1)]
    assert {
        r["_step"]: r["metrics/eval/LanguageCrossEntropy"] for r in rows if "metrics/eval/LanguageCrossEntropy" in r
    } == {step: step for step in (3, 6, 9, 12)}
    assert [(row["_step"], row["lemon/save/step"]) for row in rows if "lemon/save/step" in row] == [(AT, AT)]


def test_every_start_has_the_same_id_and_goes_nowhere(tmp_path, monkeypatch):
    wandb = require_module("wandb", "wandb")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "online")
    folder = StageFolder(tmp_path / "small")
    folder.begin(facts())
    train(folder, ("wandb",), 1, AT)
    first = offline_run(folder)
    train(folder, ("wandb",), AT + 1, STEPS)
    second = offline_run(folder)
    drawn = (folder.path / "wandb" / "id.txt").read_text().strip()
    assert first.name == second.name == f"run-{drawn}.wandb"
    (run,) = [record.run for record in wandb_records(second) if record.WhichOneof("record_type") == "run"][:1]
    assert (run.run_id, run.project, run.display_name) == (drawn, "run", "small")
    assert wandb.run is None
    assert {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*.wandb")} == {"small"}


def test_an_id_that_is_none_is_told(tmp_path):
    require_module("wandb", "wandb")
    folder = StageFolder(tmp_path / "small")
    folder.begin(facts())
    (folder.path / "wandb").mkdir()
    (folder.path / "wandb" / "id.txt").write_text("../../elsewhere")
    with pytest.raises(UserError, match=r"id.txt: '../../elsewhere' is no id of a run; remove the file") as caught:
        train(folder, ("wandb",), 1, 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("namesake", [False, True])
@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_one_line(tmp_path, name, namesake):
    """A folder of that name where Python is started, as wandb makes one, is no package."""
    if namesake:
        (tmp_path / name).mkdir()
    code = (
        "import sys; from pipeline.training import trackers; from pipeline.errors import UserError\n"
        "standard = [place for place in sys.path if place.startswith(sys.base_prefix) and 'packages' not in place]\n"
        f"sys.path = [{str(tmp_path)!r}, *standard]; sys.modules.pop({name!r}, None)\n"
        f"try: trackers.require(({name!r},))\n"
        "except UserError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout == f"trackers: {name} needs the package '{name}'; pip install -e '.[tracking]'\n", said.stderr


def test_a_tracker_that_fails_is_told_once_and_done_without(tmp_path, monkeypatch, caplog):
    class Full:
        def write(self, step, values):
            raise OSError(28, "No space left on device")

        def close(self):
            raise AssertionError("it is closed though it has failed")

    monkeypatch.setitem(trackers.OPENERS, "tensorboard", lambda opening: Full())
    monkeypatch.setattr(trackers, "require", lambda names: None)
    folder = StageFolder(tmp_path / "small")
    folder.begin(facts())
    train(folder, ("tensorboard",), 1, 4)
    assert [
        line for line in caplog.messages if re.search("tensorboard.*No space left on device", line)
    ] == caplog.messages
    assert len(caplog.messages) == 1 and len(list(folder.metrics)) == 5

"""Where a stage begins to read: with the first sample, or behind those that its weights were trained on."""

from itertools import chain
from pathlib import Path

import pytest

from pipeline import config, data, models
from pipeline.checkpoints import CheckpointLayout, manifest, publish
from pipeline.checkpoints.reshard import plan_reshard, write_reshard
from pipeline.errors import UserError
from pipeline.records.data_position import DataPosition
from pipeline.runs import preflight
from pipeline.training.data_position import first_behind, recorded
from pipeline.training.samples import StepSamples
from pipeline.training.stage import plan_training
from tests.helpers.checkpoints import trained
from tests.helpers.runs import BATCH, tiny_run

CONTINUE = "stages.large.data.continue=true"
WHERE = "stages.large.data.continue"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """The config of a run whose data are prepared."""
    path = tiny_run(tmp_path_factory.mktemp("prepared"))
    loaded = config.load(path)
    data.prepare(loaded.data, loaded.seed, loaded.path / "data")
    return path


def checkpoint(folder: Path, prepared: Path, samples: dict | None) -> Path:
    """Weights of the large model that say how far they have read."""
    loaded = config.load(prepared)
    facts = data.open_prepared(loaded.path / "data").facts
    place = trained(
        folder / "step-0000007", models.trained(loaded.models["large"], facts), CheckpointLayout("huggingface")
    )
    return place if samples is None else saying(place, folder / "known", samples)


def saying(weights: Path, folder: Path, samples: dict) -> Path:
    staged = publish.staging(folder)
    for file in weights.iterdir():
        if file.name != manifest.NAME:
            (staged / file.name).write_bytes(file.read_bytes())
    facts = {**manifest.read(weights).facts(), "provenance": {"flops": 1, "samples": samples}}
    publish.publish(staged, folder, facts)
    return folder


def test_the_later_position_in_the_same_order_counts():
    here, later = DataPosition(10, 100, 1, None), DataPosition(30, 100, 1, None)
    views = DataPosition(30, 100, 1, None, repeats=3)
    assert here.behind(later) == later == later.behind(here)
    for other in (
        None,
        DataPosition(30, 99, 1, None),
        DataPosition(30, 100, 2, None),
        DataPosition(30, 100, 1, 64),
        views,
    ):
        assert here.behind(other) == here


def test_a_stage_takes_the_samples_of_the_steps_that_would_have_come_next(prepared, tmp_path):
    """24 steps of 16 are behind the weights: its first step takes what step 24 of the stage before would have taken."""
    known = {"next": 24 * BATCH, "size": 1797 - 60, "seed": 1, "block": None}
    start = f"stages.large.start={checkpoint(tmp_path, prepared, known)}"
    on, anew = (config.load(prepared, [start, *more]) for more in ([CONTINUE], []))
    plans = [plan_training(each, each.training_stage("large")) for each in (on, anew)]
    assert [plan.first_sample for plan in plans] == [384, 0]
    ranks = {"micro_batch": 8, "rank": 1, "world": 2}
    behind, whole = (StepSamples(plan, ranks, 1) for plan in plans)
    for ours, theirs in zip(chain(behind.of(0), behind.of(1)), chain(whole.of(24), whole.of(25)), strict=True):
        assert ours.labels.equal(theirs.labels) and ours.inputs["pixel_values"].equal(theirs.inputs["pixel_values"])
    assert not next(behind.of(0)).inputs["pixel_values"].equal(next(whole.of(0)).inputs["pixel_values"])


def test_weights_of_unknown_training_are_refused_before_the_run(prepared, tmp_path):
    start = checkpoint(tmp_path, prepared, None)
    assert recorded(start) is None
    run = config.load(prepared, [CONTINUE, f"stages.large.start={start}"])
    with pytest.raises(UserError, match=rf"^{WHERE}: .*step-0000007: nothing says on which samples it was"):
        preflight.after_data(run)


@pytest.mark.parametrize("other", [{"seed": 5}, {"size": 1000}, {"repeats": 3}])
def test_weights_that_were_trained_in_another_order_are_refused(prepared, tmp_path, other):
    start = checkpoint(tmp_path, prepared, {"next": 9, "size": 1737, "seed": 1, "block": None, **other})
    here = data.open_prepared(config.load(prepared).path / "data")
    order = {"size": 1737, "seed": 1, **other}
    views = ", 3 views of each" if "repeats" in order else ""
    said = (
        f"trained on {order['size']:,} images an epoch under seed {order['seed']}{views}, and this stage reads 1,737 "
    )
    with pytest.raises(UserError, match=said):
        first_behind(start, here, 1, WHERE)


def test_what_begins_from_fresh_weights_has_nothing_to_continue(prepared):
    with pytest.raises(UserError, match=r"stages\.scratch\.data\.continue: it starts from fresh weights; name a start"):
        config.load(prepared, ["stages.scratch.data.continue=true"])


def test_a_copy_in_another_layout_knows_it_too(prepared, tmp_path):
    known = {"next": 9, "size": 1737, "seed": 1, "block": None}
    start = checkpoint(tmp_path, prepared, known)
    write_reshard(plan_reshard(start, CheckpointLayout("universal")), tmp_path / "universal", 1, "sha256")
    assert recorded(tmp_path / "universal") == DataPosition(**known)


def test_where_nothing_is_repeated_nothing_is_said_of_it():
    """An earlier release reads what this one has written."""
    plain, repeated = DataPosition(9, 100, 1, None), DataPosition(9, 100, 1, None, repeats=3)
    assert plain.as_json() == {"next": 9, "size": 100, "seed": 1, "block": None}
    assert DataPosition(**repeated.as_json()) == repeated

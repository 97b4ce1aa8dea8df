"""Stages that read on where the samples of the stage before them ended."""

import json

import pytest

from tests.helpers.cli import lemon_here
from tests.helpers.runs import BATCH, STEPS, copied, interrupted, losses

CONTINUE = "stages.large.data.continue=true"


@pytest.fixture(scope="module")
def continued(finished, tmp_path_factory):
    """A run whose grown stage reads on."""
    folder = tmp_path_factory.mktemp("continued")
    lemon_here("train", copied(finished, folder, "small", "grown"), "--stage", "large", CONTINUE)
    return folder


def read(checkpoint) -> int:
    """How far the data have been read for its weights."""
    return json.loads((checkpoint / "manifest.json").read_text())["provenance"]["samples"]["next"]


def newest(run, stage):
    return max((run / stage / "checkpoints").iterdir())


def test_each_checkpoint_says_how_far_the_data_are_read(continued, finished):
    run, steps = continued / "run", STEPS // 2
    assert [read(newest(run, stage)) for stage in ("small", "grown")] == [STEPS * BATCH] * 2
    assert read(newest(run, "large")) == (STEPS + steps) * BATCH
    assert json.loads((run / "large" / "stage.json").read_text())["first_sample"] == STEPS * BATCH
    assert read(newest(finished / "run", "large")) == STEPS * BATCH, "it has read again what its source has read"


def test_other_samples_give_other_losses(continued, finished):
    ours, theirs = (losses(folder / "run", "large") for folder in (continued, finished))
    assert ours[0] == theirs[0], "the evaluation before the first step"
    assert all(one != other for one, other in zip(ours[1:], theirs[1:], strict=True))


def test_a_continued_stage_goes_on_as_if_it_had_not_been_killed(continued, tmp_path):
    lemon_here("train", interrupted(continued, tmp_path, "large", 10), "--stage", "large", CONTINUE)
    assert losses(tmp_path / "run", "large") == losses(continued / "run", "large")
    assert read(newest(tmp_path / "run", "large")) == read(newest(continued / "run", "large"))

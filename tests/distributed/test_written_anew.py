"""Another ZeRO stage or number of ranks in the middle of a run: refused with a command, and after it trained on."""

import shlex
from pathlib import Path

import pytest

from pipeline import checkpoints
from tests.helpers.cli import lemon, lemon_here
from tests.helpers.runs import STEPS, copied, interrupted, records


def written_anew(capsys: pytest.CaptureFixture[str], path: Path, stage: str, *overrides: str) -> None:
    """Refused; what the refusal says is done."""
    code, _, error = lemon(capsys, "train", path, "--stage", stage, *overrides)
    assert code == 2 and error.count("\n") == 1 and "this stage runs as" in error
    assert lemon(capsys, *shlex.split(error.partition("first write it as that: lemon ")[2]))[0] == 0


def test_a_begun_stage_goes_on(finished, tmp_path, capsys):
    """From step 20 as ZeRO 3. The losses are what they were, but for the order of sums: 1e-7 a step was seen."""
    path, changed = interrupted(finished, tmp_path, "small", 20), "stages.small.zero_stage=3"
    written_anew(capsys, path, "small", changed)
    lemon_here("train", path, "--stage", "small", changed)
    before, after = ([r["loss"] for r in records(f / "run", "small") if "loss" in r] for f in (finished, tmp_path))
    assert after[:20] == before[:20] and after[20:] == pytest.approx(before[20:], abs=1e-5)


def test_a_grown_state_goes_on(finished, tmp_path, capsys):
    """Written for two ranks, loaded by one: AdamW counts on from the steps of the small model."""
    path, grow = copied(finished, tmp_path, "small"), "stages.grown.optimizer_state=grow"
    lemon_here("train", path, "--stage", "grown", grow)
    written_anew(capsys, path, "large", grow, "processes=1")
    lemon_here("train", path, "--stage", "large", grow, "processes=1")
    held = checkpoints.raw(checkpoints.locate(tmp_path / "run" / "large"))
    assert set(held.steps.values()) == {STEPS + STEPS / 2}

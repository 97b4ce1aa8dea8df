"""`attention: auto` of a stage: measured where it begins, recorded, kept when it goes on."""

import json
import re
from pathlib import Path

import pytest
import torch

from pipeline.training import attention
from tests.helpers.cli import lemon
from tests.helpers.runs import STEPS, copied, interrupted, losses

AUTO = "stages.small.attention=auto"


def facts(folder: Path, stage: str = "small") -> dict:
    return json.loads((folder / "run" / stage / "stage.json").read_text())


def recorded_as(folder: Path, attention: str | None) -> None:
    """Let the stage have begun with another attention, or before there was a choice."""
    content = facts(folder)
    places = [content["settings"], content["fingerprint"]["stage"], *(each["settings"] for each in content["starts"])]
    for place in places:
        del place["attention"]
        place |= {"attention": attention} if attention else {}
    (folder / "run" / "small" / "stage.json").write_text(json.dumps(content))


def test_a_beginning_stage_takes_what_was_measured_to_be_faster(finished, tmp_path, capfd):
    code, said, _ = lemon(capfd, "train", copied(finished, tmp_path), "--stage", "small", AUTO)
    measured = re.search(
        r"small: attention (\w+): a layer takes (\S+) ms with plain attention, (\S+) ms with torch's sdpa", said
    )
    assert code == 0 and measured
    chosen, eager, sdpa = measured[1], float(measured[2]), float(measured[3])
    if sdpa != pytest.approx(1.1 * eager, rel=5e-3):  # the line rounds them
        assert chosen == ("eager" if sdpa > 1.1 * eager else "sdpa")
    assert facts(tmp_path)["settings"]["attention"] == facts(tmp_path)["fingerprint"]["stage"]["attention"] == chosen
    assert losses(tmp_path / "run", "small")[-1][0] == STEPS


def test_it_is_measured_in_the_products_that_train(finished, tmp_path, capfd, monkeypatch):
    """Workers are forks, which take this over."""
    noted = tmp_path / "noted"

    def measured(*_: object) -> tuple[float, float]:
        noted.write_text(torch.get_float32_matmul_precision())
        return 1.0, 2.0

    monkeypatch.setattr(attention, "measured", measured)
    more = (AUTO, "stages.small.matmul_precision=medium", "stages.small.schedule.steps=2 steps", "processes=1")
    assert lemon(capfd, "train", copied(finished, tmp_path), "--stage", "small", *more)[0] == 0
    assert noted.read_text() == "medium"


def test_a_stage_goes_on_with_what_it_began_with(finished, tmp_path, capfd):
    """Plain attention here, not in the run that it is compared with: the same numbers but for the last digits."""
    path = interrupted(finished, tmp_path, "small", 20)
    recorded_as(tmp_path, "eager")
    code, said, _ = lemon(capfd, "train", path, "--stage", "small", AUTO)
    assert code == 0 and "attention eager" in said and "a layer takes" not in said
    assert [start["settings"]["attention"] for start in facts(tmp_path)["starts"]] == ["eager", "eager"]
    ours, theirs = losses(tmp_path / "run", "small"), losses(finished / "run", "small")
    last = (
        [loss for step, loss, _ in ours if loss and step > 20],
        [loss for step, loss, _ in theirs if loss and step > 20],
    )
    assert last[0] == pytest.approx(last[1], abs=1e-5) and last[0] != last[1]


def test_a_stage_that_began_before_there_was_a_choice_goes_on_with_sdpa(finished, tmp_path, capfd):
    path = interrupted(finished, tmp_path, "small", 20)
    recorded_as(tmp_path, None)
    command = ("train", path, "--stage", "small")
    code, _, error = lemon(capfd, *command, "stages.small.attention=eager")
    assert (
        code == 2 and "stage.attention was sdpa, is now eager; go on with it all the same (--allow attention)" in error
    )
    assert lemon(capfd, *command, AUTO)[0] == 0
    assert losses(tmp_path / "run", "small") == losses(finished / "run", "small")
    assert facts(tmp_path)["settings"]["attention"] == "sdpa"


def test_another_one_where_it_is_allowed(finished, tmp_path, capfd):
    path = interrupted(finished, tmp_path, "small", 20)
    command = ("train", path, "--stage", "small", "stages.small.attention=eager", "--allow", "attention")
    assert lemon(capfd, *command)[0] == 0
    assert [start["settings"]["attention"] for start in facts(tmp_path)["starts"]] == ["sdpa", "eager"]

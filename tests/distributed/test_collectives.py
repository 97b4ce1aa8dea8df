"""The time of a step is divided into what it is made of, its collectives told apart, under every ZeRO stage."""

import json

import pytest

from tests.helpers.cli import lemon
from tests.helpers.rotation import rotated
from tests.helpers.runs import copied

STEP = {"data", "forward", "backward", "communication", "optimizer"}


@rotated(one_in=2, of="zero_stage")
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_step_has_all_parts(finished, tmp_path, capfd, zero_stage):
    path = copied(finished, tmp_path)
    assert lemon(capfd, "train", path, "--stage", "small", f"stages.small.zero_stage={zero_stage}")[0] == 0
    lines = (tmp_path / "run" / "small" / "times.jsonl").read_text().splitlines()
    spent = [json.loads(line) for line in lines if json.loads(line)["kind"] == "spent"]
    of_steps = [each["seconds"] for each in spent if "forward" in each["seconds"]]
    assert of_steps and all(seconds.keys() >= STEP and min(seconds.values()) > 0 for seconds in of_steps)

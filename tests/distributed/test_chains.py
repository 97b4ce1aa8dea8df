"""Growing in the middle of a run: stages that share one schedule and one order of samples."""

import json
import math
import signal
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from pipeline import checkpoints, config
from pipeline.checkpoints import diff, publish
from pipeline.growth import new_entries
from pipeline.training.start import origin
from tests.helpers.cli import lemon, lemon_here, run_lemon
from tests.helpers.killed import run_killed
from tests.helpers.rotation import rotated
from tests.helpers.runs import BATCH, copied, records

PLAN = {"kind": "wsd", "peak": 1e-3, "minimum": 1e-4, "warmup": "4 steps", "decay": "6 steps", "horizon": "20 steps"}
ON = {"schedule": {**PLAN, "continue": True}, "data": {"continue": True}}


def chain(folder: Path, finished: Path, zero_stage: int, *grown: dict, **first: object) -> Path:
    """A run on the data of a finished one: a stage that is grown, and what it becomes; or that alone, to its end."""
    folder.mkdir()
    content = yaml.safe_load(copied(finished, folder).read_text())
    for model in content["models"].values():
        model["dropout"] = 0.0
    train = {"kind": "train", "batch": BATCH, "zero_stage": zero_stage, "attention": "sdpa", "schedule": PLAN}
    train |= {"model": "small", "evaluate_every": "5 steps", "save_every": "5 steps"}
    content["stages"] = [{**train, "name": "first", **({"grow_at": "50 %"} if grown else {}), **first}]
    for number, keys in enumerate(grown):
        grow = {"kind": "expand", "name": f"grown-{number}", "source": content["stages"][-1]["name"]}
        after = {**train, **ON, "name": f"behind-{number}", "start": grow["name"], **keys}
        content["stages"] += [{**grow, "model": after["model"], "optimizer_state": "grow"}, after]
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_profile_of_a_stage_whose_turn_has_not_come(finished, tmp_path, capfd):
    path = chain(tmp_path / "chain", finished, 1, {"model": "large"})
    code, out, error = lemon(capfd, "profile", path, "--stage", "behind-0", "--steps", 1, "--json", "processes=1")
    assert code == 0 and json.loads(out)["settings"]["origin"] == "fresh weights", error


def trained(run: Path, *stages: str) -> list[tuple]:
    return [(row["loss"], row["lr"]) for stage in stages for row in records(run, stage) if "lr" in row]


@rotated(one_in=3, of="zero_stage")
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_a_growth_to_its_own_size_changes_nothing(finished, tmp_path, zero_stage):
    """To the bit: weights, moments, rates, samples."""
    whole = chain(tmp_path / "whole", finished, zero_stage)
    grown = chain(tmp_path / "grown", finished, zero_stage, {"model": "small"})
    for path in (whole, grown):
        lemon_here("run", path)
    alone = trained(tmp_path / "whole" / "run", "first")
    assert trained(tmp_path / "grown" / "run", "first", "behind-0") == alone and len(alone) == 20
    ends = origin(config.load(whole), "first"), origin(config.load(grown), "behind-0")
    assert [set(checkpoints.raw(end).steps.values()) for end in ends] == [{20.0}] * 2
    found = diff.compare(*ends)
    assert replace(found, besides=[]).equal and [each["key"] for each in found.besides] == ["global_samples"]


DEEPER = {"model": "large", "rewarm": {"steps": "4 steps", "to": 1.5}, "zero_stage": 2}


def from_nothing(folder: Path, finished: Path) -> Path:
    """A chain of a model without layers, one of two and a wider one of three, in a ZeRO stage each."""
    path = chain(folder, finished, 1, {"model": "small", "grow_at": "70 %", "zero_stage": 3}, DEEPER)
    content = yaml.safe_load(path.read_text())
    content["models"]["none"] = {**content["models"]["small"], "layers": 0}
    first, deeper, _, wider, _ = content["stages"]
    first |= {"model": "none", "grow_at": "40 %"}
    deeper |= {"method": {"name": "lemon", "depth": "random"}, "optimizer_state": "asymmetric"}
    wider["optimizer_state"] = "asymmetric"
    path.write_text(yaml.safe_dump(content))
    return path


NAMES = "first", "behind-0", "behind-1"


@pytest.mark.slow
def test_a_run_grows_twice_from_no_layer_and_may_be_killed_while_it_grows(finished, tmp_path, capsys):
    """Steps, samples and FLOPs are those of one run; new entries are of two growths, and have a warm-up of their own;
    after a kill in the middle of a file of the first growth all is as without."""
    paths = [from_nothing(tmp_path / name, finished) for name in ("whole", "killed")]
    code, out, error = lemon(capsys, "run", paths[0], "--dry-run", "--json")
    assert code == 0, error
    assert json.loads(out)["stages"][-1]["memory"]["new_entries"] > 0
    whole, killed = (path.parent / "run" for path in paths)
    lemon_here("run", paths[0])
    lemon_here("train", paths[1], "--stage", "first")
    assert run_killed("midway", "run", paths[1], said=tmp_path / "said").code == -signal.SIGKILL
    assert not (killed / "grown-0" / "checkpoints").exists() or not publish.newest(killed / "grown-0" / "checkpoints")
    lemon_here("run", paths[1])
    assert trained(killed, *NAMES) == trained(whole, *NAMES) and len(trained(whole, *NAMES)) == 20
    facts = [json.loads((whole / name / "stage.json").read_text()) for name in NAMES]
    assert [each["steps"] for each in facts] == [8, 6, 6]
    assert [each["first_sample"] for each in facts] == [0, 8 * BATCH, 14 * BATCH]
    assert [each["schedule"]["begin"] for each in facts] == [0, 8, 14]
    state = checkpoints.raw(origin(config.load(paths[0]), "behind-1"))
    assert [growth.since for growth in new_entries.read(state.engine)] == [8, 14]
    assert set(state.steps.values()) == {20.0}


@pytest.mark.slow
def test_a_pilot_says_when_to_grow(finished, tmp_path):
    """As JSON alone on stdout; what is trained tells of itself on stderr. A longer one goes on with it."""
    path = chain(tmp_path / "chain", finished, 1, {"model": "large"})
    asked = "pilot", path, "--grow-at", "20 %", "--json", "processes=1", "--length"
    told = [run_lemon(*asked, length) for length in ("20 %", "40 %")]
    found = [json.loads(each.stdout) for each in told]
    assert [each["points"][-1]["step"] for each in found] == [4, 8] and found[0]["horizon"] == 20
    assert found[1]["points"][:5] == found[0]["points"] and "behind: step 4 of 4" in told[0].stderr
    run = tmp_path / "chain" / "run-pilot-grown-0-at-20"
    assert [row["step"] for row in records(run, "behind") if "lr" in row] == list(range(1, 9))


def test_a_larger_model_goes_on_with_schedule_and_samples(finished, tmp_path):
    """Its horizon is in FLOPs, of which its steps cost more."""
    horizon = {"schedule": {**PLAN, "horizon": "2e8 flops", "warmup": "2e7 flops", "decay": "6e7 flops"}}
    after = {"model": "large", "schedule": {**horizon["schedule"], "continue": True}}
    path, run = chain(tmp_path / "chain", finished, 2, after, **horizon), tmp_path / "chain" / "run"
    lemon_here("run", path)
    small, large = (json.loads((run / name / "stage.json").read_text()) for name in ("first", "behind-0"))
    cost = [facts["flops_per_step"]["train"] for facts in (small, large)]
    assert small["steps"] == math.ceil(Fraction(1, 2) * math.ceil(2e8 / cost[0]))
    assert large["schedule"]["begin"] == pytest.approx(small["steps"] * cost[0] / cost[1])
    assert large["steps"] == math.ceil(math.ceil(2e8 / cost[1]) - large["schedule"]["begin"])
    assert large["first_sample"] == small["steps"] * BATCH
    rates = [row[1] for row in trained(run, "first", "behind-0")]
    left = math.ceil(2e8 / cost[1]) - large["schedule"]["begin"] - large["steps"] + 1
    assert max(rates) == 1e-3 and rates[-1] == pytest.approx(1e-4 + 9e-4 * left / math.ceil(6e7 / cost[1]))

"""A result of `lemon expand` loads into the script that trained the source, whatever groups that makes of its
parameters: DeepSpeed's flat files name nothing, so other groups would be other weights."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config

from pipeline import checkpoints, models
from pipeline.checkpoints import CheckpointLayout
from pipeline.checkpoints.state import State
from pipeline.errors import UserError
from pipeline.expansion import expand, groups, planning
from pipeline.growth import methods
from pipeline.growth.plan import plan_growth
from tests.helpers.cli import lemon
from tests.helpers.rotation import rotated
from tests.helpers.scripts.plain_everything import bits

ACCOUNT = "tests.helpers.scripts.plain_growth:account"
SMALL = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_inner": 24, "vocab_size": 40, "n_positions": 12}
WIDER = {**SMALL, "n_embd": 24, "n_head": 3, "n_inner": 40}
LARGE = {**WIDER, "n_layer": 3}
CASES = [
    # stage, ranks, rule, frozen, more
    (1, 2, "one", None, {}),
    (2, 2, "trainer", None, {}),
    (3, 2, "trainer", "wpe", {}),
    (3, 1, "layers", None, {"zero": {"sub_group_size": 500}}),
    (2, 1, "layers", "ln_f", {}),
    (1, 1, "trainer", "wte", {"bf16": True}),
]


def place(path: Path) -> dict[str, str]:
    return {"dir": str(path.parent), "tag": path.name}


def named(sizes: dict, state: State, dtype: torch.dtype) -> dict[str, str]:
    """What the engine of the large model must hold, in its own names. dtype: of frozen parameters, of which no engine
    keeps masters."""
    config = GPT2Config(**sizes)
    held = {}
    for param in models.architecture_of(config).rows():
        whose = "frozen" if param.name in state.frozen else "fp32"
        weights = state.tensors[param.name].tensor()
        held[f"{whose} {param.module_name}"] = bits(weights.to(dtype) if whose == "frozen" else weights)
        for slot, tensors in state.slots.items():
            if param.name in tensors and whose == "fp32":
                held[f"{slot} {param.module_name}"] = bits(tensors[param.name].tensor())
    return held


@rotated(one_in=2, of=("case", "state"), alike=lambda case, state: state)
@pytest.mark.parametrize("state", ["grow", "reset"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_its_script_loads_what_was_grown(tmp_path, workers, capsys, case, state):
    stage, world, rule, frozen, more = case
    job = {"stage": stage, "rule": rule, "frozen": frozen, **more}
    small, out, target = tmp_path / "theirs" / "two", tmp_path / "ours" / "two", tmp_path / "target.json"
    before = workers.run(ACCOUNT, {"sizes": SMALL, "steps": 2, "save": place(small), **job}, world)
    GPT2Config(**SMALL).to_json_file(tmp_path / "small.json", use_diff=False)
    sizes = WIDER if rule == "layers" else LARGE  # where a new layer belongs, only such a script knows
    GPT2Config(**sizes).to_json_file(target, use_diff=False)
    options = ["--source-config", tmp_path / "small.json", "--optimizer-state", state]
    code, said, err = lemon(capsys, "expand", "--source", small, "--target", target, "--out", out, *options)
    assert code == 0, err
    fresh = state == "reset"
    assert ("load_lr_scheduler_states=False" in said) == fresh
    after = workers.run(ACCOUNT, {"sizes": sizes, "load": place(out), "fresh": fresh, **job}, world)
    layout = CheckpointLayout("zero", stage, world)
    plan = planning.plan_expansion(small, GPT2Config(**sizes), methods.parse(), layout, tmp_path / "small.json", state)
    expected = named(sizes, expand.grown(plan), torch.bfloat16 if more.get("bf16") else torch.float32)
    assert {key: after[key] for key in expected} == expected
    assert after["groups"] == before["groups"] if not fresh else after["epoch"] == "None"
    if not fresh:
        kept = ("counters", "schedule", "scale")
        assert {key: after[key] for key in kept} == {key: before[key] for key in kept} and after["epoch"] == "3"


@pytest.mark.parametrize("sizes, told", [(WIDER, False), (LARGE, True)], ids=["wider", "deeper"])
def test_groups_that_differ_from_layer_to_layer_are_told(tmp_path, sizes, told):
    config = GPT2Config(**SMALL)
    order = checkpoints.parameter_order(config)
    first = tuple(name for name in order if ".h.0." in name)
    parts = tuple(name for name in order if name not in first), first
    state = State({}, groups=tuple(checkpoints.Group(names, {"lr": 0.1}) for names in parts))
    grouping = groups.of_the_source(tmp_path, state, config, GPT2Config(**sizes), growth(sizes))
    assert bool(grouping.remark and "must group it so too" in grouping.remark) == told
    assert all(".h.0." in name or (told and ".h.1." in name) for name in grouping.groups[1].names)


def growth(sizes: dict):
    architectures = (models.architecture_of(GPT2Config(**each)) for each in (SMALL, sizes))
    return plan_growth(*architectures, methods.parse(), 0.02)


def test_groups_of_another_order_are_refused(tmp_path):
    """Sorted by size, say: by which rule a larger model's would be ordered is not known."""
    config = GPT2Config(**SMALL)
    order = checkpoints.parameter_order(config)
    state = State({}, groups=(checkpoints.Group(tuple(reversed(order)), {"lr": 0.1}),))
    with pytest.raises(UserError, match=r"group 0 of its optimizer has '.*' before '.*'.*--format huggingface"):
        groups.of_the_source(tmp_path, state, config, GPT2Config(**LARGE), growth(LARGE))

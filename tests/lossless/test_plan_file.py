"""Plans on disk: what is read back grows the same, older files are upgraded, newer and foreign ones refused by name."""

import json

import pytest
import torch

from pipeline import models
from pipeline.errors import UserError
from pipeline.growth import plan_file
from pipeline.growth.execute import PlanExecutor
from tests.helpers.growing import planned, randomised, rows_of, times
from tests.helpers.samples import sample

CASES = {
    "lemon": ("bert-pre-ln", {"hidden": 20, "heads": 5, "mlp": 33, "layers": 4}, {"depth": "cancel", "seed": 3}),
    "larger heads": ("gpt2", {"hidden": 30, "heads": 3}, {"noise": 0.5}),
    "post-LN": ("bert", times(2, layers=3), {}),
    "layer scales": ("dinov2", {"hidden": 20, "heads": 5}, {}),
    "groups": ("qwen3", {"hidden": 24, "heads": 6, "kv_heads": 3}, {}),
    "images": ("vit", {"image": 24, "patch": 8}, {}),
    "drawn": ("vit", {"hidden": 24, "heads": 6, "mlp": 200}, {"method": "net2net", "seed": 1}),
    "two terms": ("gpt2", times(2), {"method": "aki"}),
    "fresh": ("vit", times(2), {"method": "random"}),
}


def saved(folder, variant: str, sizes: dict, options: dict):
    source = sample(variant)
    plan, _ = planned(source, sample(variant, **sizes), **options)
    plan_file.save(plan, folder)
    return plan, randomised(source)


@pytest.mark.parametrize("variant, sizes, options", CASES.values(), ids=CASES)
def test_a_plan_that_is_read_back_grows_the_same(tmp_path, variant, sizes, options):
    plan, weights = saved(tmp_path, variant, sizes, options)
    again = plan_file.load(tmp_path, plan.source, plan.target, 0.0)
    assert (again.options, again.layers, again.tensors) == (plan.options, plan.layers, plan.tensors)
    assert (again.config_change, again.lossy, again.sizes) == (plan.config_change, plan.lossy, plan.sizes)
    assert (again.noise, again.init_std, again.moves_norm_affines) == (
        plan.noise,
        plan.init_std,
        plan.moves_norm_affines,
    )
    expected = dict(PlanExecutor(plan).tensors(rows_of(weights)))
    for name, tensor in PlanExecutor(again).tensors(rows_of(weights)):
        assert torch.equal(tensor, expected[name]), name


def test_a_plan_without_a_format_is_made_again_by_its_method(tmp_path):
    """As written before plans held their maps: options for every method alike, rows, no maps."""
    source, target = sample("bert-pre-ln"), sample("bert-pre-ln", **times(2, layers=4))
    plan, _ = planned(source, target, depth="cancel", placement="top", noise=0.5, seed=3)
    options = {"method": "lemon", "depth": "cancel", "placement": "top", "noise": 0.5, "seed": 3}
    (tmp_path / plan_file.PLAN).write_text(json.dumps({"options": options, "layers": [], "rows": [], "sizes": {}}))
    again = plan_file.load(tmp_path, plan.source, plan.target, models.initializer_range(target))
    assert (again.options, again.tensors, again.init_std) == (plan.options, plan.tensors, plan.init_std)
    fpi = {"method": "fpi", "depth": "zero", "placement": "even", "noise": 1.0, "seed": 0}
    (tmp_path / plan_file.PLAN).write_text(json.dumps({"options": fpi}))
    assert plan_file.load(tmp_path, plan.source, plan.target, 0.02).options.method == "fpi"


def test_a_newer_plan_is_refused(tmp_path):
    plan, _ = saved(tmp_path, *CASES["lemon"])
    content = json.loads((tmp_path / plan_file.PLAN).read_text())
    (tmp_path / plan_file.PLAN).write_text(json.dumps({**content, "format": 4}))
    with pytest.raises(
        UserError, match=r"plan.json: has format 4, and this version of lemon reads formats up to 3; use the version"
    ):
        plan_file.load(tmp_path, plan.source, plan.target, 0.0)


def test_a_plan_of_other_models_is_refused(tmp_path):
    plan, _ = saved(tmp_path, *CASES["lemon"])
    other = models.architecture_of(sample("bert-pre-ln", **times(2, layers=4)))
    with pytest.raises(
        UserError, match=r"plan.json: plans a growth of embed 12 -> 20, and these two models have 12 -> 24; remove it"
    ):
        plan_file.load(tmp_path, plan.source, other, 0.0)


@pytest.mark.parametrize("change", [{"maps": None}, {"layers": [1]}, {"tensors": [{}]}, {"format": "x"}, {"sizes": {}}])
def test_a_damaged_plan_is_one_line(tmp_path, change):
    plan, _ = saved(tmp_path, *CASES["lemon"])
    content = json.loads((tmp_path / plan_file.PLAN).read_text())
    (tmp_path / plan_file.PLAN).write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=r"plan\.json: ") as caught:
        plan_file.load(tmp_path, plan.source, plan.target, 0.0)
    assert "\n" not in str(caught.value)

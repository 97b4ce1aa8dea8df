"""What a model's code makes of a stored number, scale * (stored + offset), is what grows: Gemma's gains, stored less 1,
and its token embeddings, multiplied by the root of the width."""

import pytest
import torch

from pipeline import models
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.optimizer_state import GrownSlot
from pipeline.growth.verification.equivalence import verify
from pipeline.optim.optimizers import Slot
from tests.helpers.growing import ARCHITECTURES, grown, planned, randomised, rows_of, runnable, times
from tests.helpers.samples import sample

STORED_LESS = [
    variant for variant, architecture in ARCHITECTURES.items() if any(param.offset for param in architecture.params)
]
SCALED = [
    variant for variant, architecture in ARCHITECTURES.items() if any(param.scale != 1 for param in architecture.params)
]
ODD = {"hidden": 20, "heads": 5, "mlp": 33}


@pytest.mark.parametrize("variant", STORED_LESS)
@pytest.mark.parametrize("sizes", [{"mlp": 27}, times(2), {"layers": 4}], ids=["mlp", "double", "deeper"])
def test_numbers_that_stay_are_carried_to_the_bit(variant, sizes):
    """Adding 1 and taking it away again would round a number of 1e-20 to 0, and 0.1 to another."""
    source, values = sample(variant), torch.tensor([1e-20, 0.1, -0.0, -1.0, 1e20, -1e-9] * 2, dtype=torch.float64)
    weights = {name: values.clone() if len(t) == 12 and t.dim() == 1 else t for name, t in randomised(source).items()}
    large, _, plan = grown(weights, source, sample(variant, **sizes))
    offset = {row.name for row in plan.target.rows() if row.offset and row.axes[0].spaces != ("decoded",)}
    carried = [each for each in plan.tensors if each.target in offset and each.terms]
    assert carried
    for each in carried:
        copies = large[each.target].view(torch.int64).view(-1, len(weights[each.origin]))
        assert (copies == weights[each.origin].view(torch.int64)).all(), each.target


@pytest.mark.parametrize("variant", STORED_LESS)
def test_the_gain_grows_and_not_what_is_stored_of_it(variant):
    source = sample(variant)
    weights = randomised(source)
    large, _, plan = grown(weights, source, sample(variant, **ODD))
    for row in plan.target.rows():
        if row.offset and row.axes[0].spaces != ("decoded",) and "head" not in row.axes[0].spaces:
            origin = next(each.origin for each in plan.tensors if each.target == row.name)
            gain = 1 + weights[origin]
            expected = (12 / 20) ** 0.5 * torch.cat([gain, gain.mean().expand(8)])
            assert torch.allclose(1 + large[row.name], expected, atol=1e-14), row.name


@pytest.mark.parametrize("variant", STORED_LESS)
def test_gradients_know_nothing_of_the_offset(variant):
    source = sample(variant)
    plan, _ = planned(source, sample(variant, **times(2)), noise=0.0)
    executor, ones = PlanExecutor(plan), {row.name: torch.full(s, 8.0) for row, s in _shapes(source)}
    for each in plan.tensors:
        row = executor.params[each.target]
        if row.offset and "head" not in row.axes[0].spaces and row.axes[0].spaces != ("decoded",):
            for slot, factor in ((Slot("exp_avg", 1), 2), (Slot("exp_avg_sq", 2), 4)):
                assert (GrownSlot(executor, each, slot, rows_of(ones)).rows() == 8.0 / factor).all()


def _shapes(config) -> list:
    architecture = models.architecture_of(config)
    return [(row, architecture.shape(row)) for row in architecture.rows()]


@pytest.mark.parametrize("variant", STORED_LESS)
def test_learned_maps_and_fresh_models_take_the_gain(variant):
    """LiGO that starts as LEMON makes LEMON's gains; fresh layers store 0."""
    source, target = sample(variant), sample(variant, **times(2, layers=4))
    weights = randomised(source)
    lemon, _, plan = grown(weights, source, target, noise=0.0)
    ligo, _, _ = grown(weights, source, target, method="ligo", width_init="lossless", noise=0.0)
    fresh, _, _ = grown(weights, source, target, method="random")
    stored = [row.name for row in plan.target.rows() if row.offset]
    assert stored
    for name in stored:
        assert torch.allclose(ligo[name], lemon[name], atol=1e-6) and not fresh[name].any(), name


@pytest.mark.parametrize("variant", SCALED)
def test_the_table_is_as_much_smaller_as_its_multiplier_is_larger(variant):
    """And where the decoder is tied to it, the last norm makes up for that. Optimizer state goes the other way."""
    source = sample(variant)
    weights, name = randomised(source), next(n for n in randomised(source) if "embed_tokens" in n)
    large, _, plan = grown(weights, source, sample(variant, **ODD), noise=0.0)
    factor = (12 / 20) ** 0.5
    table = torch.cat([weights[name], torch.zeros(61, 8)], 1) * factor
    assert torch.allclose(large[name], table, rtol=1e-7)  # models hold the root in float32
    norm = next(row for row in plan.target.rows() if row.layer is None and row.norm)
    gain = factor * (1 + weights[norm.name]) / (factor if norm.scale != 1 else 1)
    assert torch.allclose(1 + large[norm.name][:12], gain, rtol=1e-7)
    executor, row = PlanExecutor(plan), next(each for each in plan.tensors if each.target == name)
    for slot in (Slot("exp_avg", 1), Slot("exp_avg_sq", 2)):
        rows = GrownSlot(executor, row, slot, rows_of({name: torch.ones(61, 12)})).rows()
        assert torch.allclose(rows[:, :12], torch.tensor(factor**-slot.power).double(), rtol=1e-7)


@pytest.mark.parametrize("variant", SCALED)
def test_tables_are_compared_as_the_model_takes_them(variant):
    """Every row, be it in the probe or not: the growth's are equal, and a table without the factor is not."""
    source = sample(variant)
    weights = {name: tensor.float() for name, tensor in randomised(source).items()}
    large, target, plan = grown(weights, source, sample(variant, **ODD))
    found = verify(runnable(source, weights), runnable(target, large), plan)
    assert found.lossless and found.tables < 1e-7, str(found)
    name = next(name for name in large if "embed_tokens" in name)
    wrong = {**large, name: large[name] / (12 / 20) ** 0.5}
    assert verify(runnable(source, weights), runnable(target, wrong), plan).tables > 0.2

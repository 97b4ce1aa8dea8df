"""Optimizer state that is kept on the source's entries, and new entries with a warm-up of their own: against plain
PyTorch, which does it by masks."""

from itertools import pairwise

import pytest
import torch

from pipeline import checkpoints, models
from pipeline.checkpoints import CheckpointLayout
from pipeline.expansion import expand, planning
from pipeline.growth import methods, new_entries
from pipeline.optim.rewarm import Ramp
from tests.helpers.checkpoints import trained
from tests.helpers.parity_task import BATCH, batch, stage
from tests.helpers.plain_masked import MaskedAdamW, gradients
from tests.helpers.rotation import rotated
from tests.helpers.same_state import resharded
from tests.helpers.samples import sample

TRAIN = "tests.helpers.scripts.new_entries:train"
SIZES = [
    {"layers": 1, "hidden": 12, "heads": 3, "mlp": 20},
    {"layers": 3, "hidden": 24, "heads": 6, "mlp": 40},
    {"layers": 4, "hidden": 24, "heads": 6, "mlp": 60},
]
"""Whole multiples, so that the source's entries are the first ones along every axis, and its layers the first ones."""
RATE, RAMP = 2e-3, (3, 1.5)
COUNTED = 7
"""Steps of the optimizer behind which the first growth is (tests/helpers/checkpoints.py)."""


def layout(zero_stage: int, ranks: int) -> CheckpointLayout:
    return CheckpointLayout("zero", zero_stage, ranks)


def expanded(source, out, sizes: dict, form: CheckpointLayout):
    """By copies at the top, without noise: state and masks are what is looked at."""
    chosen = methods.parse("lemon", {"depth": "copy", "placement": "last", "noise": 0.0})
    target = sample("bert-pre-ln", **sizes)
    behind = stage(micro_batch=1).optimizer
    job = planning.plan_expansion(source, target, chosen, form, moments="asymmetric", continued_by=behind)
    expand.execute_expansion(job, out)
    return out


class Plain:
    """The plain loop from a checkpoint on. born: for each entry the step at which it began."""

    def __init__(self, place, born: dict[str, torch.Tensor], counted: int):
        state, config = checkpoints.read(place)
        self.settings, architecture = stage(micro_batch=1).optimizer, models.architecture_of(config)
        self.net = models.fill(models.build(config), lambda name: state.tensors[name].tensor()).train()
        named, decayed = dict(self.net.named_parameters()), {row.name for row in architecture.rows()}
        decays = {name: g.hyper["weight_decay"] for g in state.groups for name in g.names}
        self.born, self.counted = born, counted
        self.optimizer = MaskedAdamW(
            {row.name: (named[row.module_name], decays[row.name]) for row in architecture.rows()},
            {n: tuple(state.slots[s][n].tensor().clone() for s in ("exp_avg", "exp_avg_sq")) for n in decayed},
            {name: counted - when for name, when in born.items()},
            self.settings.betas,
            self.settings.eps,
        )

    def train(self, first: int, last: int, ramp: tuple[int, float] | None, newest: int) -> list[float]:
        """newest: at which step the entries began that the ramp is of."""
        losses = []
        for step in range(first, last):
            losses.append(gradients(self.net, batch("bert-pre-ln", step, 0, BATCH), self.settings.clip))
            self.counted += 1
            factor = Ramp(*ramp).at(self.counted - newest) if ramp else 1.0
            rates = {n: torch.where(when == newest, RATE * factor, RATE) for n, when in self.born.items()}
            self.optimizer.step(rates, self.counted)
        return losses


def born_behind(before: dict[str, torch.Tensor], small, large, when: int) -> dict[str, torch.Tensor]:
    """For every entry the step at which it began: the source's are the first ones along every axis."""
    born = {}
    for row in models.architecture_of(large).rows():
        whole = torch.full(models.architecture_of(large).shape(row), float(when))
        if row.name in before:
            whole[tuple(slice(0, size) for size in before[row.name].shape)] = before[row.name]
        born[row.name] = whole
    return born


def at_once(config) -> dict[str, torch.Tensor]:
    architecture = models.architecture_of(config)
    return {row.name: torch.zeros(architecture.shape(row)) for row in architecture.rows()}


def require_like(place, plain: Plain) -> None:
    """2e-5, a hundredth of the rate: sums of gradients in another order, which where they are as small as eps move an
    update by part of the rate. No gradient reaches the keys' biases but such rounding, for the softmax does not see
    them."""
    state, _ = checkpoints.read(place)
    for name, (parameter, _) in plain.optimizer.parameters.items():
        far = (state.tensors[name].tensor() - parameter).abs().max().item()
        assert far < (RATE if name.endswith("key.bias") else 2e-5), (name, far)
        for slot, moment in zip(("exp_avg", "exp_avg_sq"), plain.optimizer.moments[name], strict=True):
            assert torch.allclose(state.slots[slot][name].tensor(), moment, rtol=1e-3, atol=2e-6), (slot, name)


WAYS = {1: [(1, 2), (3, 1)], 2: [(2, 2), (1, 1)], 3: [(3, 2), (2, 2)], 0: [(0, 2), (0, 2)]}
"""By ZeRO stage, (stage, ranks) of the training behind the growth and of the one that goes on from its checkpoint."""


@pytest.mark.parametrize("ramp", [None, RAMP], ids=["kept", "rewarmed"])
@pytest.mark.parametrize("zero_stage", WAYS)
def test_it_is_what_masks_in_plain_pytorch_make(workers, tmp_path, zero_stage, ramp):
    """Over a resume that is a reshard too, with another ZeRO stage and other ranks."""
    (begin, goes_on), (small, large) = WAYS[zero_stage], (sample("bert-pre-ln", **sizes) for sizes in SIZES[:2])
    source = trained(tmp_path / "small", small, layout(1, 2))
    place = expanded(source, tmp_path / "large", SIZES[1], layout(*begin))
    plain = Plain(place, born_behind(at_once(small), small, large, COUNTED), COUNTED)
    expected = plain.train(0, 5, ramp, COUNTED)
    job = {"place": str(place), "ramp": ramp, "rate": RATE, "folder": str(tmp_path)}
    losses = workers.run(TRAIN, {**job, "stage": {"zero_stage": begin[0]}, "first": 0, "last": 2}, world=begin[1])
    saved = resharded(tmp_path / "step-0000002", tmp_path / "again", layout(*goes_on))
    behind = {**job, "place": str(saved), "stage": {"zero_stage": goes_on[0]}, "first": 2, "last": 5}
    losses += workers.run(TRAIN, behind, world=goes_on[1])
    assert losses == pytest.approx(expected, abs=1e-5)
    require_like(tmp_path / "step-0000005", plain)


@rotated(one_in=3, of="zero_stage")
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_entries_of_two_growths_keep_their_own_counts(workers, tmp_path, zero_stage):
    """The second growth takes what the first one has added along, and only its own entries have the ramp."""
    configs, form = [sample("bert-pre-ln", **sizes) for sizes in SIZES], layout(zero_stage, 2)
    job = {"stage": {"zero_stage": zero_stage}, "ramp": RAMP, "rate": RATE, "folder": str(tmp_path)}
    place, born, counted = trained(tmp_path / "small", configs[0], form), at_once(configs[0]), COUNTED
    for number, (small, large) in enumerate(pairwise(configs)):
        place = expanded(place, tmp_path / f"large-{number}", SIZES[number + 1], form)
        born = born_behind(born, small, large, counted)
        plain = Plain(place, born, counted)
        first, last = 3 * number, 3 * number + 3
        expected = plain.train(first, last, RAMP, counted)
        assert workers.run(TRAIN, {**job, "place": str(place), "first": first, "last": last}, world=2) == (
            pytest.approx(expected, abs=1e-5)
        )
        place, counted = tmp_path / f"step-{last:07d}", counted + 3
        require_like(place, plain)
    state, _ = checkpoints.read(place)
    assert [growth.since for growth in new_entries.read(state.engine)] == [COUNTED, COUNTED + 3]


def test_a_ramp_without_new_entries_is_refused(workers, tmp_path):
    place = trained(tmp_path / "small", sample("bert-pre-ln"), layout(1, 1))
    job = {"place": str(place), "stage": {"zero_stage": 1}, "ramp": RAMP, "rate": RATE, "folder": str(tmp_path)}
    with pytest.raises(AssertionError, match="no entry of its optimizer state is new; leave rewarm out, or expand"):
        workers.run(TRAIN, {**job, "first": 0, "last": 1}, world=1)


@rotated(one_in=2, of="zero_stage")
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_so_it_is_in_bf16(workers, tmp_path, zero_stage):
    """3e-2 of a loss, as other trainings in bf16 are held to; the masters' new entries as near as a few roundings of
    gradients leave them."""
    small, large = (sample("bert-pre-ln", **sizes) for sizes in SIZES[:2])
    form = CheckpointLayout("zero", zero_stage, 2, bf16=True, fp32_sums=zero_stage == 1)
    place = expanded(trained(tmp_path / "small", small, layout(1, 2)), tmp_path / "large", SIZES[1], form)
    plain = Plain(place, born_behind(at_once(small), small, large, COUNTED), COUNTED)
    expected = plain.train(0, 4, RAMP, COUNTED)
    job = {"place": str(place), "ramp": RAMP, "rate": RATE, "folder": str(tmp_path), "first": 0, "last": 4}
    fields = {"zero_stage": zero_stage, "precision": "bf16", "micro_batch": BATCH // 2}
    losses = workers.run(TRAIN, {**job, "stage": fields}, world=2)
    assert losses == pytest.approx(expected, abs=3e-2)
    state, _ = checkpoints.read(tmp_path / "step-0000004")
    name = "bert.encoder.layer.2.intermediate.dense.weight"
    (parameter, _), begun = plain.optimizer.parameters[name], checkpoints.read(place)[0].tensors[name].tensor()
    moved, other = parameter - begun, state.tensors[name].tensor() - begun
    assert (moved - other).norm() < 0.1 * moved.norm()

"""Mango against an implementation of its own, one dense einsum written from the formula of arXiv:2310.10699; and where
it starts."""

import io
import json
import re
from functools import cached_property

import pytest
import torch
from rich.console import Console
from torch import Tensor

from pipeline import models
from pipeline.checkpoints import CheckpointLayout
from pipeline.errors import UserError
from pipeline.expansion.expand import execute_expansion
from pipeline.expansion.fitted import UNFITTED
from pipeline.expansion.planning import plan_expansion
from pipeline.expansion.preview import preview, show
from pipeline.growth import methods, optimizer_state, plan_file
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.methods.mango import MangoModule
from pipeline.growth.plan import GrowthPlan, begun_module, plan_growth, require_possible
from pipeline.optim.optimizers import Slot
from tests.helpers.checkpoints import trained
from tests.helpers.growing import EXACT, Weights, difference, planned, randomised, rows_of
from tests.helpers.rotation import rotated
from tests.helpers.samples import sample

SMALL = {"hidden": 8, "heads": 2, "mlp": 16, "layers": 2}
LARGE = {"hidden": 12, "heads": 3, "mlp": 24, "layers": 3}
TWICE = {"hidden": 16, "heads": 4, "mlp": 32, "layers": 2}
BERT = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
VIT = ["attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense"]
LINEAR = {
    "bert": [*BERT, "intermediate.dense", "output.dense"],
    "vit": [*VIT, "intermediate.dense", "output.dense"],
    "dinov2": [*VIT, "mlp.fc1", "mlp.fc2"],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "opt": [*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "fc1", "fc2"],
}
"""The dense layers of a layer, from which the slots are cut."""
ALIKE = {"bert-pre-ln": "bert", "roberta": "bert", "deit": "vit"}
FAMILIES = [
    *("bert-pre-ln", "bert-pre-ln transform", "bert", "bert untied", "bert encoder", "roberta"),
    *("vit", "vit encoder", "vit without bias", "deit distilled", "dinov2", "gpt2", "gpt2 untied", "opt"),
]
TIED_NORM = {
    "bert-pre-ln": r"^bert.LayerNorm",
    "bert-pre-ln transform": "transform.LayerNorm",
    "bert": "transform.LayerNorm",
    "roberta": "lm_head.layer_norm",
    "gpt2": "ln_f",
    "opt": r"^model.decoder.final_layer_norm",
}
"""What the token embedding reads."""
READERS = r"(transform.dense|pooler.dense|classifier|lm_head|lm_head.dense|decoder).weight$"
LOGITS = r"(classifier|lm_head|decoder).(weight|bias)$|predictions.bias"


class Reference:
    """The formula in plain torch, with one einsum for all matrices of all layers."""

    def __init__(self, variant: str, module: MangoModule, weights: Weights):
        self.variant, self.weights, self.target = variant, weights, module.target
        self.cores = {name: core.detach().clone().requires_grad_() for name, core in module.cores.items()}
        self.layers, self.width = module.source.stacks[0].layers, module.source.residual.size
        family = variant.split()[0]
        self.dense, self.transposed = LINEAR[ALIKE.get(family, family)], family == "gpt2"
        self.templates = [
            p.name for p in self.target.params if any(p.name.endswith("}." + d + ".weight") for d in self.dense)
        ]
        assert len(self.templates) == len(self.dense)

    def cut(self, matrix: Tensor) -> list[Tensor]:
        """Squares (in, out) of a matrix as it is stored."""
        matrix = matrix if self.transposed else matrix.T
        return [square for rows in matrix.split(self.width) for square in rows.split(self.width, 1)]

    @cached_property
    def grown(self) -> Tensor:
        """M2 (B, I, O, L)."""
        layers = [
            [
                square
                for template in self.templates
                for square in self.cut(self.weights[template.replace("{i}", str(j))])
            ]
            for j in range(self.layers)
        ]
        source = torch.stack([torch.stack(squares) for squares in layers], -1)
        ring = [self.cores[name] for name in ("slots", "outputs", "layers", "inputs")]
        return torch.einsum("pbBq,qoOr,rlLs,siIp,biol->BIOL", *ring, source)

    def matrix(self, template: str, layer: int) -> Tensor:
        counts = [len(self.cut(self.weights[each.replace("{i}", "0")])) for each in self.templates]
        number = self.templates.index(template)
        squares = self.grown[sum(counts[:number]) :][: counts[number], :, :, layer]
        long_input = self.weights[template.replace("{i}", "0")].shape[0 if self.transposed else 1] > self.width
        matrix = torch.cat(list(squares), 0 if long_input else 1)
        return matrix if self.transposed else matrix.T

    def closed(self, name: str) -> Tensor:
        return torch.einsum("rabr->ab", self.cores[name])

    def vector(self, template: str, layer: int) -> Tensor:
        """By pieces of the width."""
        source = torch.stack([self.weights[template.replace("{i}", str(j))] for j in range(self.layers)])
        pieces = source.unflatten(1, (-1, self.width))
        return torch.einsum("oO,l,lpo->pO", self.closed("outputs"), self.closed("layers")[:, layer], pieces).flatten()

    def outside(self, name: str) -> Tensor:
        tensor, written, read = self.weights[name], self.closed("outputs"), self.closed("inputs")
        if re.search(TIED_NORM.get(self.variant, "^$"), name):
            return tensor @ read
        if re.search(READERS, name):
            tensor = (tensor.unflatten(1, (-1, self.width)) @ read).flatten(1)
        elif (
            re.search(r"embeddings|wte|wpe|embed_|token$", name)
            and "projection" not in name
            and "LayerNorm" not in name
        ):
            return tensor @ written
        return tensor if re.search(LOGITS, name) else torch.einsum("o...,oO->O...", tensor, written)

    def tensor(self, row) -> Tensor:
        if row.layer is None:
            return self.outside(row.name)
        return (self.matrix if row.template in self.templates else self.vector)(row.template, row.layer)


def module_of(variant: str, rank: int, large: dict, random: bool = False) -> MangoModule:
    """In float64; as it starts, or with random cores."""
    architectures = [models.architecture_of(sample(variant, **sizes)) for sizes in (SMALL, large)]
    module = begun_module(*architectures, methods.parse("mango", {"rank": rank})).double()
    generator = torch.Generator().manual_seed(rank)
    for core in module.parameters() if random else ():
        core.data = 0.5 * torch.randn(core.shape, generator=generator, dtype=torch.float64)
    return module


def plan_of(module: MangoModule) -> GrowthPlan:
    options = methods.parse("mango", {"rank": module.rank})
    return plan_growth(module.source, module.target, options, 0.02, module=module)


def source_of(variant: str) -> Weights:
    return randomised(sample(variant, **SMALL))


@rotated(one_in=3, of=("variant", "rank"))
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("variant", FAMILIES)
def test_the_formula_and_its_gradients(variant, rank):
    module, weights = module_of(variant, rank, LARGE, random=True), source_of(variant)
    plan, reference = plan_of(module), Reference(variant, module, weights)
    ours, theirs = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    rows, probe = {row.name: row for row in plan.target.rows()}, torch.Generator().manual_seed(1)
    for name, tensor in PlanExecutor(plan).tensors(rows_of(weights)):
        expected = reference.tensor(rows[name])
        assert tensor.shape == expected.shape, name
        torch.testing.assert_close(
            tensor, expected, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )
        weight = torch.randn(tensor.shape, generator=probe, dtype=torch.float64)
        ours, theirs = ours + (weight * tensor).sum(), theirs + (weight * expected).sum()
    ours.backward()
    theirs.backward()
    for name, core in module.cores.items():
        torch.testing.assert_close(core.grad, reference.cores[name].grad, rtol=1e-10, atol=1e-10)


def by_pieces(plan: GrowthPlan, name: str, tensor: Tensor) -> Tensor:
    """A tensor with the MLP's hidden units in the order (piece, copy, entry), where FPI has (copy, piece, entry)."""
    row = next(row for row in plan.target.rows() if row.name == name)
    width = plan.source.residual.size
    for axis, label in enumerate(row.axes):
        if label.spaces == ("mlp",):
            pieces = plan.source.spaces["mlp"].size // width
            tensor = tensor.unflatten(axis, (-1, pieces, width)).transpose(axis, axis + 1).flatten(axis, axis + 2)
    return tensor


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("variant", FAMILIES)
def test_it_starts_as_fpi_with_the_mlps_units_in_pieces(variant, layers, rank):
    large = {**TWICE, "layers": layers}
    plan, weights = plan_of(module_of(variant, rank, large)), source_of(variant)
    source, target = sample(variant, **SMALL), sample(variant, **large)
    known, _ = planned(source, target, method="fpi")
    expected = dict(PlanExecutor(known).tensors(rows_of(weights)))
    grown = {name: tensor.detach() for name, tensor in PlanExecutor(plan).tensors(rows_of(weights))}
    for name, tensor in grown.items():
        assert torch.equal(tensor, by_pieces(plan, name, expected[name])), name
    assert plan.lossy == ("its maps were learned",) and plan.config_change == known.config_change
    if layers == 2:
        assert difference(source, weights, target, grown, plan) <= EXACT


def gradients(module: MangoModule, weights: Weights) -> dict[str, Tensor]:
    module.zero_grad()
    loss = torch.zeros((), dtype=torch.float64)
    for number, (_, tensor) in enumerate(PlanExecutor(plan_of(module)).tensors(rows_of(weights))):
        generator = torch.Generator().manual_seed(number)
        loss = loss + (torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * tensor).sum()
    loss.backward()
    return {name: core.grad.clone() for name, core in module.cores.items()}


def test_gradients_reach_the_whole_ring_in_three_steps():
    """The first step's reach index 0 and what leads back to it in every core; once that has moved, all indices."""
    module, weights = module_of("gpt2", 3, LARGE), source_of("gpt2")
    for step in range(3):
        found = gradients(module, weights)
        for name, gradient in found.items():
            reached = gradient.abs().amax((1, 2)) > 0
            assert reached[:, 0].all() and (step < 2 or reached.all()), name
        with torch.no_grad():
            for name, core in module.cores.items():
                core -= 1e-3 * found[name].sign()


def test_windows_of_rows_are_rows_of_the_whole():
    """Products of fewer rows may add up in another order."""
    for variant in ("bert", "gpt2"):
        module, weights = module_of(variant, 2, LARGE, random=True), source_of(variant)
        executor = PlanExecutor(plan_of(module.requires_grad_(False)))
        for row in executor.plan.tensors:
            whole, read = executor.tensor(row, rows_of(weights)), rows_of(weights)
            windows = [range(start, min(start + 5, row.shape[0])) for start in range(0, row.shape[0], 5)]
            parts = torch.cat([executor.tensor(row, read, window) for window in windows])
            torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("variant", ["bert", "gpt2"])
def test_its_plan_is_a_file_that_grows_the_same_to_the_bit(tmp_path, variant, rank):
    """Terms that many blocks share are listed once, coefficients lie in the tensors."""
    module, weights = module_of(variant, rank, {**LARGE, "layers": 6}, random=True), source_of(variant)
    plan = plan_of(module)
    assert plan_file.save(plan, tmp_path) == [plan_file.PLAN, plan_file.TENSORS]
    again = plan_file.load(tmp_path, plan.source, plan.target, 0.02)
    expected = dict(PlanExecutor(plan).tensors(rows_of(weights)))
    for name, tensor in PlanExecutor(again).tensors(rows_of(weights)):
        assert not tensor.requires_grad and torch.equal(tensor, expected[name]), name
    content = json.loads((tmp_path / plan_file.PLAN).read_text())
    assert rank == 1 or list(map(len, content["sums"].values())) == [rank**4 * 8 * 2]


def test_an_optimizer_state_is_refused_by_name():
    plan = plan_of(module_of("bert", 1, LARGE))
    slots = [Slot("exp_avg", 1), Slot("exp_avg_sq", 2)]
    reasons = optimizer_state.refusals(plan, slots, ["exp_avg", "exp_avg_sq"])
    assert any("'mango' makes each matrix of matrices of several kinds" in reason for reason in reasons)


@pytest.mark.parametrize("variant", ["bert", "gpt2"])
def test_it_is_shown_grown_verified_and_published(tmp_path, variant):
    """As it starts, through the same commands as any method."""
    source = trained(tmp_path / "small", sample(variant, **SMALL), CheckpointLayout("huggingface"))
    target, options = sample(variant, **LARGE), methods.parse("mango", {"rank": 2})
    expansion = plan_expansion(source, target, options, CheckpointLayout("huggingface"), fitted=UNFITTED)
    console = Console(width=200, file=io.StringIO())
    show(preview(expansion), console)
    shown = console.file.getvalue()
    assert "LOSSY: its maps were learned" in shown and "a dense matrix" in shown
    assert re.search(r"(intermediate.dense|c_fc).weight +(24x12|12x24) +3 *\n", shown), shown
    preview(expansion).save(tmp_path / "plan.json")
    result = execute_expansion(expansion, tmp_path / "large")
    again = plan_file.load(tmp_path / "large", expansion.growth.source, expansion.growth.target, 0.02)
    assert not result.lossless and again.options == options


REFUSED = {
    "rotary positions turn pairs": ("llama", {}, {}),
    "the MLP has a gate": ("llama", {}, {}),
    "groups of heads share keys and values": ("mistral", {"kv_heads": 1}, {"kv_heads": 1}),
    "mlp 20 is no whole multiple of the width 8": ("bert", {"mlp": 20}, {}),
    "mlp 30 is no whole multiple of the width 12": ("gpt2", {}, {"mlp": 30}),
    "goes from 2 to 3 times the width": ("vit", {}, {"mlp": 36}),
    "head_dim changes from 4 to 6": ("bert", {}, {"heads": 2}),
    "heads of the source are 16 wide in all": ("vit", {"head_dim": 8}, {"head_dim": 8}),
    "shrinks": ("bert", {}, {"layers": 1}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_fall_into_slots_is_refused_by_name(reason):
    variant, small, large = REFUSED[reason]
    architectures = [models.architecture_of(sample(variant, **s)) for s in ({**SMALL, **small}, {**LARGE, **large})]
    with pytest.raises(UserError, match=f"method 'mango' cannot grow this model: .*{reason}"):
        require_possible(*architectures, methods.parse("mango"))


def test_the_rank_is_one_or_more():
    with pytest.raises(UserError, match="options of method 'mango': rank"):
        methods.parse("mango", {"rank": 0})


def test_a_rank_with_more_coefficients_than_the_target_has_parameters_is_refused():
    source, target = models.architecture_of(sample("vit", **SMALL)), models.architecture_of(sample("vit", **LARGE))
    with pytest.raises(UserError, match=r"rank 9 has [\d,]+ coefficients, and the target [\d,]+ parameters") as caught:
        require_possible(source, target, methods.parse("mango", {"rank": 9}))
    most = int(str(caught.value).rsplit(" ", 1)[1])
    require_possible(source, target, methods.parse("mango", {"rank": most}))
    module = begun_module(source, target, methods.parse("mango", {"rank": most}))
    assert sum(core.numel() for core in module.parameters()) <= target.parameters

"""LiGO against an implementation of its own, written from Algorithm 1 of arXiv:2303.00980 with dense matrices; and what
its coefficients can express."""

import re

import pytest
import torch
from torch import Tensor

from pipeline import models
from pipeline.growth import methods, plan_file
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.method import ExpansionOptions, GrowthContext
from pipeline.growth.methods.ligo import Ligo, LigoModule
from pipeline.growth.plan import GrowthPlan, plan_growth
from tests.helpers.growing import dense, planned, randomised, rows_of, times
from tests.helpers.samples import VARIANTS, sample

PUBLISHED = {"maps": "tied", "width_init": "rand"}
BERT = {
    r"word_embeddings|position_embeddings|token_type_embeddings": (None, "embed"),
    r"self.query.weight": ("query", "embed"),
    r"self.key.weight": ("key", "embed"),
    r"self.value.weight": ("value", "embed"),
    r"self.(query|key|value).bias": (1, None),
    r"attention.output.dense.weight": ("embed", "value"),
    r"intermediate.dense.weight": ("mlp", "embed"),
    r"intermediate.dense.bias": ("mlp", None),
    r"output.dense.weight": ("embed", "mlp"),
    r"transform.dense.weight": ("embed", "embed"),
    r"LayerNorm|dense.bias": ("embed", None),
    r"predictions.bias": (None, None),
}
VIT = {
    r"cls_token|position_embeddings": (None, "embed"),
    r"projection.weight": ("embed", None),
    r"attention.query.weight": ("query", "embed"),
    r"attention.key.weight": ("key", "embed"),
    r"attention.value.weight": ("value", "embed"),
    r"attention.(query|key|value).bias": (1, None),
    r"attention.output.dense.weight": ("embed", "value"),
    r"intermediate.dense.weight": ("mlp", "embed"),
    r"intermediate.dense.bias": ("mlp", None),
    r"output.dense.weight": ("embed", "mlp"),
    r"layernorm|dense.bias|projection.bias": ("embed", None),
    r"classifier.weight": (None, "embed"),
    r"classifier.bias": (None, None),
}
LLAMA = {
    r"embed_tokens|lm_head": (None, "embed"),
    r"q_proj": ("query", "embed"),
    r"k_proj": ("key", "embed"),
    r"v_proj": ("value", "embed"),
    r"o_proj": ("embed", "value"),
    r"(gate|up)_proj": ("mlp", "embed"),
    r"down_proj": ("embed", "mlp"),
    r"norm": ("embed", None),
}
GPT2 = {
    r"wte|wpe": (None, "embed"),
    r"c_attn.weight": ("embed", ("query", "key", "value")),
    r"c_attn.bias": (("query", "key", "value"), None),
    r"attn.c_proj.weight": ("value", "embed"),
    r"c_fc.weight": ("embed", "mlp"),
    r"c_fc.bias": ("mlp", None),
    r"mlp.c_proj.weight": ("mlp", "embed"),
    r"ln_|c_proj.bias": ("embed", None),
}
TABLES = {"bert-pre-ln transform": BERT, "bert": BERT, "vit": VIT, "llama": LLAMA, "llama tied": LLAMA, "gpt2": GPT2}
"""Of every tensor the matrices of its first and last axis. 1: named in the pattern."""


def ligo(options: dict) -> ExpansionOptions:
    return methods.parse(Ligo.name, options)


class Reference:
    """Algorithm 1: widen every layer's tensor by B_out W B_in^T, then add up the layers."""

    def __init__(self, variant: str, module: LigoModule):
        self.table, self.target = TABLES[variant], module.target
        self.lower = {name.split()[0]: p.detach().clone().requires_grad_() for name, p in module.matrices.items()}
        self.mixtures = {
            name.replace(":", "."): p.detach().clone().requires_grad_() for name, p in module.mixtures.items()
        }

    def matrix(self, name: str | tuple[str, ...]) -> Tensor:
        """B: the identity on top of its learned part; of fused projections one behind the other; of rotary heads the
        same number for all entries of a head."""
        if isinstance(name, tuple):
            return torch.block_diag(*map(self.matrix, name))
        b = torch.cat([torch.eye(self.lower[name].shape[1], dtype=torch.float64), self.lower[name]])
        rotary = self.target.attentions[0].rope and name in ("query", "key", "value")
        return torch.kron(b, torch.eye(self.target.spaces[name].unit, dtype=torch.float64)) if rotary else b

    def widened(self, template: str, tensor: Tensor) -> Tensor:
        pattern, (out, into) = next((p, names) for p, names in self.table.items() if re.search(p, template))
        out = re.search(pattern, template)[out] if isinstance(out, int) else out
        if out is not None:
            tensor = torch.einsum("ts,s...->t...", self.matrix(out), tensor)
        return tensor if into is None else torch.einsum("...s,ts->...t", tensor, self.matrix(into))

    def tensor(self, weights: dict[str, Tensor], row) -> Tensor:
        if row.layer is None:
            return self.widened(row.name, weights[row.name])
        mixture = self.mixtures[row.template][row.layer]
        wide = [self.widened(row.template, weights[row.template.replace("{i}", str(j))]) for j in range(len(mixture))]
        return sum(c * w for c, w in zip(mixture, wide, strict=True))


def fitted(variant: str, layers: int = 4, /, **options) -> tuple[LigoModule, GrowthPlan, dict[str, Tensor]]:
    """The module as it starts, in float64, its plan, and a random source."""
    source, target = sample(variant), sample(variant, **times(2, layers=layers))
    architectures, parsed = ((models.architecture_of(source), models.architecture_of(target)), ligo(options))
    module = Ligo().module(*architectures, GrowthContext(parsed.options)).double()
    return module, plan_growth(*architectures, parsed, 0.02, module=module), randomised(source)


@pytest.mark.parametrize("depth_init", ["stack", "interleave"])
@pytest.mark.parametrize("variant", TABLES)
def test_the_published_growth_and_its_gradients(variant, depth_init):
    module, plan, weights = fitted(variant, **PUBLISHED, depth_init=depth_init)
    reference, probe = Reference(variant, module), torch.Generator().manual_seed(1)
    ours, theirs = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    rows = {row.name: row for row in plan.target.rows()}
    for name, tensor in PlanExecutor(plan).tensors(rows_of(weights)):
        expected = reference.tensor(weights, rows[name])
        assert tensor.shape == expected.shape and torch.allclose(tensor, expected, rtol=0, atol=1e-12), name
        weight = torch.randn(tensor.shape, generator=probe, dtype=torch.float64)
        ours, theirs = ours + (weight * tensor).sum(), theirs + (weight * expected).sum()
    ours.backward()
    theirs.backward()
    for name, parameter in module.matrices.items():
        assert torch.allclose(parameter.grad, reference.lower[name.split()[0]].grad, rtol=1e-10, atol=1e-10), name
    for name, parameter in module.mixtures.items():
        assert torch.allclose(parameter.grad, reference.mixtures[name.replace(":", ".")].grad, rtol=1e-10, atol=1e-10)


FAMILIES = ["bert-pre-ln", "bert-pre-ln transform", "bert", "vit", "deit", "gpt2", "gpt2 untied", "llama", "llama tied"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_lossless_start_is_lemons_growth_to_the_bit(variant):
    _, plan, weights = fitted(variant, 3)
    known, _ = planned(sample(variant), sample(variant, **times(2, layers=3)))
    expected = dict(PlanExecutor(known).tensors(rows_of(weights)))
    for name, tensor in PlanExecutor(plan).tensors(rows_of(weights)):
        assert torch.equal(tensor, expected[name]), name
    assert plan.config_change == known.config_change


@pytest.mark.parametrize("method", ["fpi", "net2net"])
@pytest.mark.parametrize("variant", FAMILIES)
def test_untied_matrices_express_copies(variant, method):
    """To rounding: a product with a dense matrix adds up zeros besides."""
    source, target = sample(variant), sample(variant, **times(2))
    module, _, weights = fitted(variant, 2, maps="untied", width_init="sel")
    known, _ = planned(source, target, method=method)
    with torch.no_grad():
        for name, sides in module.start.sides.items():
            for side, goes_by in sides.items():
                matrix = module.start.matrices[goes_by.matrix]
                units = dense(getattr(known.maps[name], side))[:: matrix.unit, :: matrix.unit]
                assert torch.equal(matrix.whole(units[matrix.fixed :]), units), "the top is the identity"
                if goes_by.groups is None:
                    module.matrices[goes_by.matrix].copy_(units[matrix.fixed :])
        for mixture in module.mixtures.values():
            mixture.copy_(torch.eye(2))
    options = ligo({"maps": "untied", "width_init": "sel"})
    plan = plan_growth(module.source, module.target, options, 0.02, module=module)
    expected = dict(PlanExecutor(known).tensors(rows_of(weights)))
    for name, tensor in PlanExecutor(plan).tensors(rows_of(weights)):
        assert torch.allclose(tensor, expected[name], rtol=0, atol=1e-12), name


@pytest.mark.parametrize("maps", ["tied", "untied"])
@pytest.mark.parametrize("method, depth_init", [("stack", "stack"), ("interpolate", "interleave")])
@pytest.mark.parametrize("variant", ["bert-pre-ln", "bert", "vit", "gpt2", "llama"])
def test_mixtures_that_take_one_layer_each_stack_or_interpolate(variant, method, depth_init, maps):
    """Bit for bit: what does not widen has no matrix."""
    source, target = sample(variant), sample(variant, layers=4)
    architectures = models.architecture_of(source), models.architecture_of(target)
    options = ligo({"maps": maps, "width_init": "sel", "depth_init": depth_init})
    module = Ligo().module(*architectures, GrowthContext(options.options)).double()
    assert not module.matrices
    with torch.no_grad():
        for mixture in module.mixtures.values():
            mixture.copy_((mixture == mixture.max(1, keepdim=True).values).double())
    plan, weights = plan_growth(*architectures, options, 0.02, module=module), randomised(source)
    known, _ = planned(source, target, method=method)
    expected = dict(PlanExecutor(known).tensors(rows_of(weights)))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in PlanExecutor(plan).tensors(rows_of(weights)))


@pytest.mark.parametrize("options", [{}, {"maps": "tied", "width_init": "rand", "variant": "per_layer"}])
@pytest.mark.parametrize("variant", ["bert-pre-ln", "llama tied"])
def test_the_plan_of_a_fitted_module_is_a_file_like_any_other(tmp_path, variant, options):
    """Mixtures, matrices and the maps of the noise: read back it grows the same tensors, to the bit."""
    module, _, weights = fitted(variant, 3, **options)
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)).double()
    plan = plan_growth(module.source, module.target, ligo(options), 0.02, module=module)
    plan_file.save(plan, tmp_path)
    again = plan_file.load(tmp_path, plan.source, plan.target, 0.02)
    assert again.options == plan.options and again.config_change == plan.config_change
    expected = dict(PlanExecutor(plan).tensors(rows_of(weights)))
    for name, tensor in PlanExecutor(again).tensors(rows_of(weights)):
        assert not tensor.requires_grad and torch.equal(tensor, expected[name]), name

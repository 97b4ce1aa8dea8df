"""A target whose weights are made while it runs computes, and learns, as one whose weights were made before."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.func import functional_call
from torch.nn import functional as F

from pipeline import models
from pipeline.growth import methods
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.grown_model import GrownModel
from pipeline.growth.plan import begun_module
from pipeline.models.config_keys import DROP_PATH_RATE
from pipeline.training.compilation import compile_layers
from tests.helpers.growing import randomised, rows_of, times
from tests.helpers.samples import CLASSES, IMAGE, POSITIONS, VOCAB, sample

FAMILIES = ["bert-pre-ln", "bert-pre-ln transform", "bert", "vit", "deit", "gpt2", "gpt2 untied", "llama", "llama tied"]
LIGO = [
    {},
    {"maps": "tied", "width_init": "rand"},
    {"width_init": "rand-eta", "variant": "per_layer", "depth_init": "interleave"},
]
CASES = {
    **{
        f"{variant} ligo {name}": (variant, "ligo", options)
        for variant in FAMILIES
        for name, options in zip(("lossless", "published", "per layer"), LIGO, strict=True)
    },
    **{f"{variant} mango": (variant, "mango", {"rank": 2}) for variant in FAMILIES if "llama" not in variant},
}


def task(variant: str) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(3)
    if models.family(variant.split()[0]).data == "images":
        images = torch.randn(4, 3, IMAGE, IMAGE, generator=generator)
        return {"pixel_values": images}, torch.randint(CLASSES, (4,), generator=generator)
    tokens = torch.randint(VOCAB, (4, POSITIONS), generator=generator)
    return {"input_ids": tokens}, torch.randint(VOCAB, (4 * POSITIONS,), generator=generator)


def grown(variant: str, method: str, options: dict, dropped: float = 0.0) -> tuple[GrownModel, dict[str, Tensor]]:
    """Of a source of random weights, with three layers for two. dropped: rate of the target's stochastic depth."""
    source, target = sample(variant, mlp=24), sample(variant, **times(2, layers=3, mlp=48))
    target.update({DROP_PATH_RATE: dropped} if dropped else {})
    weights = {name: tensor.float() for name, tensor in randomised(source, scale=0.15).items()}
    parsed = methods.parse(method, options)
    module = begun_module(models.architecture_of(source), models.architecture_of(target), parsed)
    return GrownModel((source, target), parsed, module, weights), weights


def loss_and_gradients(module: torch.nn.Module, run, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    module.zero_grad()
    torch.manual_seed(1)
    loss = F.cross_entropy(run().logits.flatten(0, -2), labels)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("variant, method, options", CASES.values(), ids=CASES)
def test_loss_and_gradients_are_those_of_weights_made_before(variant, method, options):
    """Tied tensors sum their gradients in another order."""
    learns_as_weights_made_before(variant, *grown(variant, method, options))


@pytest.mark.parametrize("variant", ["bert-pre-ln", "vit"])
def test_so_they_are_where_branches_are_dropped(variant):
    """Also where a layer is made and run again."""
    learns_as_weights_made_before(variant, *grown(variant, "ligo", {}, dropped=0.5))


def learns_as_weights_made_before(variant: str, model: GrownModel, weights: dict[str, Tensor]) -> None:
    inputs, labels = task(variant)
    loss, gradients = loss_and_gradients(model.coefficients, lambda: model.train()(**inputs), labels)
    assert not [name for name, gradient in gradients.items() if gradient is None]

    def plainly():
        made = dict(PlanExecutor(model.plan(), torch.float32).tensors(rows_of(weights)))
        names = {row.name: row.module_name for row in model.plan().target.rows()}
        plain = models.build(model.config).train()
        return functional_call(plain, {names[name]: tensor for name, tensor in made.items()}, kwargs=inputs)

    expected, theirs = loss_and_gradients(model.coefficients, plainly, labels)
    assert torch.equal(loss, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, theirs[name], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("variant", ["bert-pre-ln", "vit", "llama"])
def test_layers_may_be_compiled(monkeypatch, variant):
    """Traced without breaks, one graph for all layers, whose weights are inputs; the same kernels run."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    model, _ = grown(variant, "ligo", {})
    inputs, labels = task(variant)
    loss, gradients = loss_and_gradients(model.coefficients, lambda: model.train()(**inputs), labels)
    compile_layers(model.layers, zero_stage=1)
    again, traced = loss_and_gradients(model.coefficients, lambda: model.train()(**inputs), labels)
    assert (counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())) == (1, 0)
    assert torch.equal(loss, again) and all(torch.equal(traced[name], each) for name, each in gradients.items())


def test_only_the_coefficients_are_parameters_and_nothing_else_is_saved():
    model, _ = grown("bert-pre-ln", "ligo", {})
    assert set(model.state_dict()) == {f"coefficients.{name}" for name, _ in model.coefficients.named_parameters()}
    halved = model.bfloat16()
    assert halved(**task("bert-pre-ln")[0]).logits.dtype == torch.bfloat16

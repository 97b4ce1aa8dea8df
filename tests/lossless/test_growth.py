"""A growth computes exactly the same function: float64, randomised weights, all sizes that the rules allow."""

import copy

import pytest
import torch

from pipeline import models
from pipeline.config import ModelSizes
from pipeline.errors import UserError
from pipeline.growth.engine import Growth, plan
from pipeline.growth.plan import Options
from pipeline.growth.verify import EXACT, fill, probe, relative_difference, run, verify

TEXT = {"kind": "text", "vocab_size": 61, "block": 14, "scored": 3}
IMAGES = {"kind": "images", "size": 8, "channels": 3, "class_names": ["a", "b", "c"]}
SMALL = {"layers": 2, "hidden": 12, "heads": 3, "mlp": 20}
GROWTHS = {
    "double": {"hidden": 24, "heads": 6, "mlp": 40},
    "triple": {"hidden": 36, "heads": 9, "mlp": 60},
    "odd width": {"hidden": 20, "heads": 5, "mlp": 33},
    "odd above double": {"hidden": 28, "heads": 7, "mlp": 51},
    "mlp only": {"mlp": 27},
    "depth only": {"layers": 5},
    "depth doubled": {"layers": 4},
    "everything": {"layers": 4, "hidden": 32, "heads": 8, "mlp": 47},
}
PRE_LN = ["bert-pre-ln", "vit"]


def configure(name: str, **sizes):
    family = models.family(name)
    text = family.data == "text"
    wanted = ModelSizes(family=name, **{**SMALL, "patch": None if text else 4, "eps": 1e-2, **sizes})
    return family, family.configure(wanted, TEXT if text else IMAGES)


def randomised(config) -> dict[str, torch.Tensor]:
    """Every parameter random, gains and biases too: no rule may rest on ones and zeros."""
    generator = torch.Generator().manual_seed(7)
    table = models.of_config(config).table(config)
    tensors = {}
    for row in table.rows():
        tensors[row.name] = torch.randn(table.shape(row), generator=generator, dtype=torch.float64) * 0.4
        if row.axes[0].role == "gain":
            tensors[row.name] += 1
    return tensors


def grow(name: str, tensors: dict, source, target, **options):
    family = models.family(name)
    tables = family.table(source), family.table(target)
    made = plan(*tables, source.layer_norm_eps, Options(**options))
    target = copy.deepcopy(target)
    target.update(made.config_change)
    return dict(Growth(made, *tables, target.initializer_range).tensors(tensors.__getitem__)), target, made


def difference(source, small: dict, target, large: dict) -> float:
    inputs = probe(source, seed=1, samples=3)
    return relative_difference(*(run(c, w.__getitem__, inputs, torch.float64) for c, w in ((source, small), (target, large))))


@pytest.mark.parametrize("sizes", GROWTHS.values(), ids=GROWTHS)
@pytest.mark.parametrize("options", [{"depth": "zero", "placement": "even"}, {"depth": "cancel", "placement": "even"},
                                     {"depth": "zero", "placement": "top"}], ids=lambda o: "-".join(o.values()))
@pytest.mark.parametrize("name", PRE_LN)
def test_growth_is_lossless(name, sizes, options):
    _, source = configure(name)
    _, target = configure(name, **sizes)
    small = randomised(source)
    if sizes.get("layers", 2) > 4 and options["placement"] == "top":
        with pytest.raises(UserError, match="at most doubles the layers, 2 to 5 is more; use placement 'even'"):
            grow(name, small, source, target, **options)
    elif list(sizes) == ["layers"] and options["depth"] == "cancel":
        with pytest.raises(UserError, match="use depth 'zero'"):
            grow(name, small, source, target, **options)
    else:
        large, target, _ = grow(name, small, source, target, **options)
        assert difference(source, small, target, large) <= EXACT


@pytest.mark.parametrize("name", models.FAMILIES)
def test_chain_of_two_growths_is_lossless(name):
    """Post-LN grows in width by whole multiples; the others at any size."""
    _, first = configure(name)
    weights = small = randomised(first)
    config = first
    for hidden, heads in ((24, 6), (48, 12)) if name == "bert" else ((20, 5), (28, 7)):
        _, target = configure(name, hidden=hidden, heads=heads, mlp=2 * hidden)
        weights, config, _ = grow(name, weights, config, target, seed=hidden)
    assert difference(first, small, config, weights) <= EXACT


def test_the_old_epsilon_is_not_lossless():
    _, source = configure("bert-pre-ln")
    _, target = configure("bert-pre-ln", **GROWTHS["odd width"])
    small = randomised(source)
    large, changed, made = grow("bert-pre-ln", small, source, target)
    assert changed.layer_norm_eps == pytest.approx(1e-2 * 12 / 20)
    assert difference(source, small, target, large) > 1e-6


def test_noise_is_on_and_does_not_depend_on_order():
    _, source = configure("vit")
    _, target = configure("vit", **GROWTHS["everything"])
    small = randomised(source)
    large, _, made = grow("vit", small, source, target, depth="cancel")
    again = Growth(made, *(models.family("vit").table(c) for c in (source, target)), target.initializer_range)
    for row in reversed(made.rows):
        assert torch.equal(again.tensor(row, small.__getitem__), large[row.target])
    noisy = large["vit.encoder.layer.0.output.dense.weight"]
    assert not torch.equal(noisy[:, 0], noisy[:, 20])  # unit 20 copies unit 0, and may now go its own way


def test_copies_receive_different_gradients():
    """Symmetry breaking: a hidden unit and its copy must learn different things."""
    _, source = configure("bert-pre-ln")
    _, target = configure("bert-pre-ln", **GROWTHS["double"])
    large, target, _ = grow("bert-pre-ln", randomised(source), source, target)
    model = fill(models.build(target), large.__getitem__).double()
    model(**probe(source, 1, 2)).logits.square().mean().backward()
    gradient = model.bert.encoder.layer[0].intermediate.dense.weight.grad
    assert (gradient[:20] - gradient[20:]).abs().max() > 1e-3 * gradient.abs().max()


REFUSALS = [
    ("bert", {"hidden": 20, "heads": 5}, "post-LN cannot grow losslessly from 12 to 20"),
    ("bert", {"hidden": 20, "heads": 5}, "a dense-activation-norm head cannot grow losslessly from 12 to 20"),
    ("bert", {"layers": 3}, r"LN\(h\) != h"),
    ("vit", {"hidden": 24, "heads": 3, "mlp": 48}, "head_dim changes from 4 to 8; give the target 6 heads of 4"),
    ("vit", {"layers": 1}, "layers shrink from 2 to 1; an expansion only grows"),
    ("vit", {"mlp": 10}, "mlp shrinks from 20 to 10; an expansion only grows"),
]


@pytest.mark.parametrize("name, sizes, reason", REFUSALS)
def test_refusals_say_why(name, sizes, reason):
    family, source = configure(name)
    _, target = configure(name, **sizes)
    with pytest.raises(UserError, match=reason):
        plan(family.table(source), family.table(target), 1e-12, Options())


def test_families_do_not_mix():
    family, source = configure("bert")
    other, target = configure("bert-pre-ln")
    with pytest.raises(UserError, match="the source is a 'bert', the target a 'bert-pre-ln'"):
        plan(family.table(source), other.table(target), 1e-12, Options())


PAPER = [((6, 384, 6), (12, 768, 12)), ((6, 512, 8), (12, 768, 12))]


@pytest.mark.parametrize("small, large", PAPER, ids=["384", "512"])
@pytest.mark.parametrize("name", PRE_LN)
def test_published_pairs_pass_both_gates(name, small, large):
    """Stored in float32, the paper's pairs stay within the gates of a published result."""
    family = models.family(name)
    facts = {"kind": "text", "vocab_size": 4096, "block": 128, "scored": 19} if family.data == "text" else {
        "kind": "images", "size": 224, "channels": 3, "class_names": [str(i) for i in range(100)]}
    configs = [family.configure(ModelSizes(family=name, layers=n, hidden=d, heads=h, patch=16 if family.data == "images" else None), facts)
               for n, d, h in (small, large)]
    weights = {row: tensor.float() for row, tensor in randomised_like_trained(configs[0]).items()}
    grown, target, _ = grow(name, weights, *configs, depth="cancel")
    stored = {row: tensor.float() for row, tensor in grown.items()}
    found = verify(configs[0], weights.__getitem__, target, stored.__getitem__)
    assert found.lossless, str(found)


def randomised_like_trained(config) -> dict[str, torch.Tensor]:
    """At full size: weights of the scale that training leaves, so that activations stay in float32's comfortable range."""
    generator = torch.Generator().manual_seed(3)
    table = models.of_config(config).table(config)
    return {row.name: torch.randn(table.shape(row), generator=generator) * 0.05 + (row.axes[0].role == "gain") for row in table.rows()}

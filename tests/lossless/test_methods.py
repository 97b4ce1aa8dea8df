"""Every method against its word: what it calls lossless is held to it, what it calls lossy differs and says why."""

from typing import Literal

import pytest
import torch
from pydantic import Field, create_model

from pipeline import models
from pipeline.errors import UserError
from pipeline.growth import methods
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.method import MethodOptions
from pipeline.growth.methods import METHODS
from pipeline.growth.methods.fpi import Fpi
from pipeline.growth.verification.equivalence import EquivalenceCheck, verify
from pipeline.growth.verification.probe import probe
from tests.helpers.growing import (
    ARCHITECTURES,
    EXACT,
    POST_NORM,
    difference,
    grown,
    planned,
    randomised,
    runnable,
    times,
)
from tests.helpers.samples import VARIANTS, sample

CHOSEN = ["bert-pre-ln", "bert", "vit", "gpt2", "qwen3 tied", "phi3", "dinov2"]
SIZES = {
    "nothing": {},
    "double": times(2),
    "triple": times(3),
    "odd width": {"hidden": 20, "heads": 5, "mlp": 33},
    "mlp only": {"mlp": 40},
    "depth": {"layers": 4},
    "odd depth": {"layers": 5},
    "both": times(2, layers=3),
}
WHOLE = {"nothing", "double", "triple", "mlp only"}
LOSSLESS = {
    "lemon": set(SIZES),
    "fpi": WHOLE,
    "net2net": {"nothing", "mlp only"},
    "aki": {"nothing"},
    "stack": {"nothing"},
    "interpolate": {"nothing"},
    "tile": {"nothing"},
    "sparkling": WHOLE,
    "random": set(),
}
"""What each method must claim: no less, and no more."""
REASONS = {
    "fpi": {
        "odd width": ["embed grows from 12 to 20, no multiple: the norms see another variance"],
        "depth": ["layers repeat from 2 to 4"],
    },
    "net2net": {
        "double": ["embed grows from 12 to 24 by entries drawn at random: the norms see another variance"],
        "depth": ["layers repeat from 2 to 4"],
    },
    "aki": {
        "double": ["new units come from the next layer"],
        "both": ["new units come from the next layer", "layers repeat from 2 to 3"],
    },
    "stack": {"depth": ["layers repeat from 2 to 4"]},
    "interpolate": {"odd depth": ["layers repeat from 2 to 5"]},
    "tile": {"mlp only": ["copies in 'mlp' are read at full weight"], "depth": ["layers repeat from 2 to 4"]},
    "sparkling": {
        "odd width": [
            "embed grows from 12 to 20, no multiple: the norms see another variance",
            "copies in 'embed' keep the size of what reads them alone",
        ]
    },
    "random": {"nothing": ["every tensor starts fresh"]},
}


def eps(variant: str) -> float:
    return 1e-12 if variant in POST_NORM else 1e-2


def pair(variant: str, sizes: dict):
    return sample(variant, eps=eps(variant)), sample(variant, eps=eps(variant), **sizes)


def refuses(method: str, variant: str, name: str) -> bool:
    """Methods of depth take no width; lemon none that cannot be exact."""
    if method in ("stack", "interpolate"):
        return name not in ("nothing", "depth", "odd depth")
    return method == "lemon" and variant in POST_NORM and name == "odd width"


CASES = [
    (method, variant, name)
    for method in LOSSLESS
    for variant in CHOSEN
    for name in SIZES
    if not refuses(method, variant, name)
]


@pytest.mark.parametrize("method, variant, name", CASES, ids=["-".join(case) for case in CASES])
def test_methods_keep_their_word(method, variant, name):
    source, target = pair(variant, SIZES[name])
    weights = randomised(source)
    large, target, plan = grown(weights, source, target, method=method)
    assert plan.lossless == (name in LOSSLESS[method])
    found = difference(source, weights, target, large, plan)
    assert found <= EXACT if plan.lossless else found > 1e-6
    assert bool(plan.lossy) == (not plan.lossless)
    assert list(plan.lossy) == REASONS.get(method, {}).get(name, list(plan.lossy))


@pytest.mark.parametrize(
    "method, origins",
    [
        ("stack", [0, 1, 2, 0, 1, 2, 0]),
        ("fpi", [0, 1, 2, 0, 1, 2, 0]),
        ("interpolate", [0, 0, 0, 1, 1, 2, 2]),
        ("tile", [0, 0, 0, 1, 1, 2, 2]),
        ("sparkling", [0, 1, 2, 0, 1, 2, 0]),
    ],
    ids=["stack", "fpi", "interpolate", "tile", "sparkling"],
)
@pytest.mark.parametrize("variant", CHOSEN)
def test_layers_stand_where_the_method_says(variant, method, origins):
    """Tensors equal the source's: layer i mod L_S when stacked, floor(i L_S / L_T) when interpolated."""
    source, target = sample(variant, layers=3), sample(variant, layers=7)
    weights = randomised(source)
    large, _, plan = grown(weights, source, target, method=method)
    assert [layer.origin for layer in plan.layers["layers"]] == origins
    for row in models.architecture_of(target).rows():
        origin = row.template if row.layer is None else row.template.replace("{i}", str(origins[row.layer]))
        assert torch.equal(large[row.name], weights[origin]), row.name


COPIES = {"even": [0, 0, 0, 1, 1, 2, 2], "stack": [0, 1, 2, 0, 1, 2, 0], "last": [0, 1, 2, 2, 2, 2, 2]}


@pytest.mark.parametrize("placement", COPIES)
@pytest.mark.parametrize("variant", CHOSEN)
def test_lemons_new_layers_may_be_copies(variant, placement):
    """In depth alone to the bit, and said to compute something else; in width besides, each is its origin grown."""
    source, origins = sample(variant, layers=3), COPIES[placement]
    weights = randomised(source)
    large, _, plan = grown(weights, source, sample(variant, layers=7), depth="copy", placement=placement)
    assert [layer.origin for layer in plan.layers["layers"]] == origins
    assert plan.lossy == ("layers repeat from 3 to 7",) and not plan.moves_norm_affines
    for row in plan.target.rows():
        origin = row.template if row.layer is None else row.template.replace("{i}", str(origins[row.layer]))
        assert torch.equal(large[row.name], weights[origin]), row.name
    wide = {**times(2), "layers": 3}
    same, _, _ = grown(weights, source, sample(variant, **wide), noise=0.0)
    both, _, plan = grown(
        weights, source, sample(variant, **{**wide, "layers": 7}), depth="copy", placement=placement, noise=0.0
    )
    for row in plan.target.rows():
        origin = row.template if row.layer is None else row.template.replace("{i}", str(origins[row.layer]))
        assert torch.equal(both[row.name], same[origin]), row.name


@pytest.mark.parametrize("variant", CHOSEN)
def test_copies_stand_as_a_list_says(variant):
    """Depth up-scaling (SOLAR): the first layers, and behind them the last ones, where both overlap."""
    source, target = sample(variant, layers=4), sample(variant, layers=6)
    weights, origins = randomised(source), [0, 1, 2, 1, 2, 3]
    large, _, plan = grown(weights, source, target, depth="copy", placement="0-2,1-3")
    assert plan.lossy == ("layers repeat from 4 to 6",)
    for row in plan.target.rows():
        origin = row.template if row.layer is None else row.template.replace("{i}", str(origins[row.layer]))
        assert torch.equal(large[row.name], weights[origin]), row.name


@pytest.mark.parametrize("depth", ["zero", "cancel"])
@pytest.mark.parametrize("variant", ["bert-pre-ln", "vit", "gpt2", "qwen3 tied", "dinov2"])
def test_layers_that_add_nothing_stand_where_a_list_says(variant, depth):
    """A new one behind every second layer, as LLaMA Pro has them, and in width besides: lossless."""
    source, target = sample(variant, layers=4), sample(variant, **times(2), layers=6)
    weights = randomised(source)
    large, target, plan = grown(weights, source, target, depth=depth, placement="0-1,1-3,3")
    assert [layer.origin for layer in plan.layers["layers"]] == [0, 1, 1, 2, 3, 3]
    assert [layer.new for layer in plan.layers["layers"]] == [False, False, True, False, False, True]
    assert plan.lossless and difference(source, weights, target, large, plan) <= EXACT


@pytest.mark.parametrize(
    "depth, placement, reason",
    [
        ("zero", "0-2,1-3", "has a layer elsewhere than directly behind its origin; use depth 'copy'"),
        ("random", "3,0-3,3", "has a layer elsewhere than directly behind its origin; use depth 'copy'"),
        ("copy", "0-3", "lists 4 layers, and the target has 6; list as many"),
        ("copy", "0-4,3", "names layer 4, and the source has 4, from 0 on"),
        ("copy", "0-2,0-2", "leaves out layer 3 of the source; name each of its 4 layers"),
    ],
)
def test_lists_of_which_no_model_can_be_made_are_refused(depth, placement, reason):
    with pytest.raises(UserError, match=f"placement '{placement}' {reason}"):
        planned(sample("llama", layers=4), sample("llama", layers=6), depth=depth, placement=placement)


@pytest.mark.parametrize("depth", ["zero", "cancel"])
@pytest.mark.parametrize("placement", ["stack", "last"])
def test_layers_that_add_nothing_stand_behind_their_origin(depth, placement):
    source, target = sample("vit"), sample("vit", layers=4, hidden=24, heads=6, mlp=40)
    with pytest.raises(UserError, match=f"placement '{placement}' is of depth 'copy.*; use placement 'even' or 'top'"):
        planned(source, target, depth=depth, placement=placement)


@pytest.mark.parametrize("variant", ["bert", "vit", "gpt2"])
def test_tiles_stand_in_the_middle_and_are_not_divided(variant):
    """MLP units 0 to 19 are those of the target from 6 on, round and round; what reads them is as it was."""
    source, target = sample(variant), sample(variant, mlp=33)
    weights = randomised(source)
    large, _, _ = grown(weights, source, target, method="tile")
    places = [(unit - 6) % 20 for unit in range(33)]
    assert places[6:26] == list(range(20))
    for row in models.architecture_of(source).rows():
        expected = weights[row.name]
        for axis, label in enumerate(row.axes):
            if "mlp" in label.spaces:
                expected = expected.index_select(axis, torch.tensor(places))
        assert torch.equal(large[row.name], expected), row.name


@pytest.mark.parametrize("units, factor", [(30, 1 / 2.5**0.5), (20, 1.0), (40, 0.5), (50, 1 / 2.5), (60, 1 / 3)])
def test_what_reads_copies_keeps_its_size(units, factor):
    """20 MLP units become 30: half of them twice, so that a sum over all has the mean square of 10 + 4 * 10 single
    ones, as 2.5 times as many."""
    source, target = sample("vit"), sample("vit", mlp=units)
    weights = randomised(source)
    large, _, _ = grown(weights, source, target, method="sparkling")
    name = "vit.encoder.layer.0.output.dense.weight"
    expected = factor * weights[name][:, torch.arange(units) % 20]
    assert torch.allclose(large[name], expected, rtol=1e-15, atol=0)
    writer = "vit.encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(large[writer], weights[writer][torch.arange(units) % 20])


@pytest.mark.parametrize("variant", CHOSEN)
def test_aki_takes_new_rows_from_the_next_layer(variant):
    """The MLP's first rows are the layer's own, the new ones the next layer's; the last layer has none and is its
    own."""
    source, target = sample(variant, layers=3, mlp=24), sample(variant, layers=3, mlp=36)
    weights = randomised(source)
    large, _, _ = grown(weights, source, target, method="aki")
    for row in (row for row in models.architecture_of(source).rows() if row.touches("mlp", "writes")):
        axis = next(axis for axis, label in enumerate(row.axes) if "mlp" in label.spaces)
        following = weights[row.template.replace("{i}", str(min(row.layer + 1, 2)))]
        halves = (
            each.split(size, axis) for each, size in ((large[row.name], 36), (weights[row.name], 24), (following, 24))
        )
        for grown_half, own, other in zip(*halves, strict=True):  # one, where no gate is fused
            assert torch.equal(grown_half.narrow(axis, 0, 24), own)
            assert torch.equal(grown_half.narrow(axis, 24, 12), other.narrow(axis, 0, 12))


@pytest.mark.parametrize(
    "method, moves", [("net2net", True), ("fpi", False), ("lemon", True), ("aki", False), ("random", True)]
)
@pytest.mark.parametrize("variant", CHOSEN)
def test_only_what_draws_depends_on_the_seed(variant, method, moves):
    source, target = pair(variant, times(2))
    weights = randomised(source)
    one, same, other = (grown(weights, source, target, method=method, seed=seed)[0] for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one) == moves


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_random_start_is_a_fresh_model(variant):
    """The same distribution as the model's own initialisation, and nothing of the source is read, not even opened."""
    source, target = sample(variant), sample(variant, hidden=48, heads=12, mlp=96, layers=3, vocab=300, positions=60)
    plan, target = planned(source, target, method="random")

    def closed(name: str, rows: range) -> torch.Tensor:
        raise AssertionError(f"{name} was opened")

    own = dict(models.build(target, seed=1).named_parameters())
    for name, tensor in PlanExecutor(plan).tensors(closed):
        row = next(row for row in models.architecture_of(target).rows() if row.name == name)
        theirs = own[row.module].detach()
        assert tensor.shape == theirs.shape
        if row.fresh == "normal":
            expected, error = row.std * models.initializer_range(target), 4 / (2 * tensor.numel()) ** 0.5
            assert (
                abs(tensor.std().item() / expected - 1) < error
                and abs(tensor.mean().item()) < 4 * expected / tensor.numel() ** 0.5
            )
            assert theirs.std().item() == pytest.approx(tensor.std().item(), rel=2 * error + 0.02), (
                name
            )  # a padding row may be zero
        else:
            assert torch.equal(tensor.float(), theirs), name


@pytest.mark.parametrize(
    "variant", [variant for variant, architecture in ARCHITECTURES.items() if "patch" in architecture.spaces]
)
def test_larger_images_keep_the_prefix_and_are_declared_lossy(variant):
    source, target = sample(variant), sample(variant, image=16)
    weights = randomised(source)
    large, target, plan = grown(weights, source, target)
    prefix = ARCHITECTURES[variant].spaces["positions"].prefix
    assert plan.lossy == (f"positions grows from {4 + prefix} to {16 + prefix} by interpolation",)
    name = next(row.name for row in models.architecture_of(source).rows() if row.touches("positions", "reads"))
    assert torch.equal(large[name][:, :prefix], weights[name][:, :prefix]) and large[name].shape[1] == 16 + prefix
    expected = torch.nn.functional.interpolate(
        weights[name][:, prefix:].transpose(1, 2).reshape(1, -1, 2, 2), size=(4, 4), mode="bicubic"
    )
    assert torch.allclose(large[name][:, prefix:], expected.flatten(2).transpose(1, 2), atol=1e-12)
    assert all(torch.equal(large[other], weights[other]) for other in weights if other != name)
    found = verify(runnable(source, weights), runnable(target, large), plan)
    assert 1e-6 < found.float64 < 2 and not found.lossless and len(found.drift) == 2  # measured at the prefix tokens


def test_of_a_larger_grid_every_token_before_the_patches_is_compared():
    """Registers too, which have no row in the position table; the patches are others."""
    source, target = (sample("dinov2-with-registers encoder", image=image) for image in (8, 16))
    weights = randomised(source)
    large, target, plan = grown(weights, source, target)
    check = EquivalenceCheck(runnable(source, weights), runnable(target, large), plan)
    before, after = check.traces(probe(source), torch.float64)
    output, found = after.outputs["last_hidden_state"], check.difference(before, after)
    assert output.shape[1] == 1 + 3 + 16
    for token, seen in ((0, True), (1, True), (3, True), (4, False)):
        output[0, token] += 1e3
        assert (check.difference(before, after) > 10 * found) == seen, token
        output[0, token] -= 1e3


@pytest.mark.parametrize("image, patch", [(16, 8), (12, 6), (24, 8)])
@pytest.mark.parametrize(
    "variant", [variant for variant, architecture in ARCHITECTURES.items() if "patch" in architecture.spaces]
)
def test_larger_patches_see_one_colour_as_before(variant, image, patch):
    source, target = sample(variant), sample(variant, image=image, patch=patch)
    weights = randomised(source)
    large, _, plan = grown(weights, source, target)
    assert f"patch grows from 4 to {patch} by interpolation" in plan.lossy and not plan.lossless
    name = next(row.name for row in models.architecture_of(source).rows() if row.touches("patch", "reads"))
    assert large[name].shape[2:] == (patch, patch)
    assert torch.allclose(large[name].sum((2, 3)), weights[name].sum((2, 3)), atol=1e-12)  # every pixel 1


def test_every_method_is_tried():
    """Those that are fitted have tests of their own: what they compute depends on data."""
    assert set(LOSSLESS) == {name for name in METHODS if not methods.is_learned(name)} and all(
        method.name == name for name, method in METHODS.items()
    )


@pytest.mark.parametrize(
    "name, options, said",
    [
        (
            "lemon",
            {"placement": "evn"},
            (
                "options of method 'lemon': placement: must be even, top, stack, last or a list of layers such as "
                "0-23,8-31 (got 'evn')"
            ),
        ),
        ("lemon", {"colour": "red"}, "method 'lemon' has no option 'colour'; its options are depth, placement, noise"),
        ("fpi", {"noise": 1}, "method 'fpi' has no option 'noise'; it has none"),
        (
            "lemon",
            {"depth": "nil"},
            "options of method 'lemon': depth: must be 'zero', 'cancel', 'copy' or 'random' (got 'nil')",
        ),
        ("lemon", {"noise": "-1"}, "options of method 'lemon': noise: must be at least 0 (got '-1')"),
        ("lemon", {"noise": "inf"}, "options of method 'lemon': noise: must be a finite number (got 'inf')"),
        (
            "lemon",
            {"depth": 1, "noise": "much"},
            (
                "options of method 'lemon': 2 mistakes\n  depth: must be 'zero', 'cancel', 'copy' or 'random' (got 1)\n"
                "  noise: must be a number (got 'much')"
            ),
        ),
    ],
)
def test_wrong_options_are_named(name, options, said):
    with pytest.raises(UserError) as caught:
        methods.parse(name, options)
    assert str(caught.value) == said


def test_options_may_be_text_and_are_described():
    assert methods.parse("lemon", {"noise": "0.5"}) == methods.parse("lemon", {"noise": 0.5})
    lines = methods.describe()
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == list(METHODS)
    assert "  noise=a number at least 0 (default 1.0): scale of the symmetry-breaking noise" in lines


class EveryKind(MethodOptions):
    share: float = Field(0.5, gt=0, lt=1, description="both limits excluded")
    skip: int = Field(0, ge=0, le=8, description="both included")
    most: int | None = Field(None, ge=1, description="may be missing")
    end: Literal["first", "last"] | None = Field("last", description="a choice that may be missing")
    even: bool = Field(True, description="a switch")
    label: str = Field("x", description="any text")


@pytest.fixture
def every_kind(monkeypatch):
    """A method with options of every kind, registered for the time of a test."""
    method = type("Kinds", (Fpi,), {"name": "kinds", "Options": EveryKind})()
    monkeypatch.setitem(METHODS, "kinds", method)


def test_options_of_every_kind_are_described_in_words(every_kind):
    assert methods.describe()[-6:] == [
        "  share=a number more than 0 and less than 1 (default 0.5): both limits excluded",
        "  skip=a whole number at least 0 and at most 8 (default 0): both included",
        "  most=a whole number at least 1 or none (default none): may be missing",
        "  end=first|last or none (default last): a choice that may be missing",
        "  even=true or false (default true): a switch",
        "  label=text (default x): any text",
    ]


def test_what_the_words_allow_can_be_written(every_kind):
    written = {"share": "0.25", "skip": "8", "most": "3", "end": "none", "even": "false", "label": "none"}
    parsed = methods.parse("kinds", written).options
    assert parsed == EveryKind(share=0.25, skip=8, most=3, end=None, even=False, label="none")
    assert methods.parse("kinds", {"most": "none"}).options == EveryKind(most=None)


@pytest.mark.parametrize(
    "option, value, said",
    [
        ("share", "1", "must be less than 1 (got '1')"),
        ("share", "0", "must be more than 0 (got '0')"),
        ("skip", "9", "must be at most 8 (got '9')"),
        ("most", "0", "must be at least 1 (got '0')"),
        ("most", "few", "must be a whole number (got 'few')"),
        ("even", "maybe", "must be true or false (got 'maybe')"),
    ],
)
def test_what_the_words_exclude_is_refused_in_the_same_words(every_kind, option, value, said):
    with pytest.raises(UserError) as caught:
        methods.parse("kinds", {option: value})
    assert str(caught.value) == f"options of method 'kinds': {option}: {said}"


@pytest.mark.parametrize("kind", [list[int], tuple[int, int], dict[str, int] | None, Literal[1, 2]], ids=str)
def test_an_option_that_no_text_says_is_a_mistake_of_the_method(monkeypatch, kind):
    options = create_model("Lists", __base__=MethodOptions, units=(kind, None))
    monkeypatch.setitem(METHODS, "lists", type("Lists", (Fpi,), {"name": "lists", "Options": options})())
    with pytest.raises(TypeError, match="no single text says it"):
        methods.describe()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_option_has_a_default_and_a_description(method):
    fields = method.Options.model_fields.values()
    assert all(field.description and not field.is_required() for field in fields) and methods.describe()

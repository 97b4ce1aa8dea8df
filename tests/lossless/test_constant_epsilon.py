"""Norms whose epsilon is a constant of the code (OPT, DistilBERT): width grows by whole multiples, anything else by
any amount."""

import pytest
import transformers
from safetensors.torch import save_file

from pipeline import models
from pipeline.errors import UserError
from pipeline.growth.verification.equivalence import verify
from tests.helpers.growing import EXACT, difference, grown, randomised, runnable, times
from tests.helpers.samples import sample

EVERYTHING = times(2, mlp=51, layers=3, vocab=70, positions=20)
"""Twice the width, an odd MLP, a layer, tokens and positions appended."""


@pytest.mark.parametrize(
    "variant",
    [
        "opt",
        "opt untied",
        "opt encoder",
        "opt without bias",
        "opt without affine",
        "distilbert",
        "distilbert untied",
        "distilbert token-classifier",
        "distilbert question-answering",
    ],
)
def test_everything_grows_but_the_epsilon(variant, tmp_path):
    """What `from_pretrained` makes of the grown tensors and the config computes what the source does."""
    source, target = sample(variant), sample(variant, **EVERYTHING)
    weights = randomised(source)
    tensors, target, plan = grown(weights, source, target)
    assert plan.lossless and plan.config_change == {}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(models.config_text(target, "float64"))
    head = models.of_config(target).head(target)
    model, report = getattr(transformers, head.class_name).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    parameters = dict(model.named_parameters())
    loaded = {row.name: parameters[row.module].detach() for row in models.architecture_of(model.config).rows()}
    assert difference(source, weights, model.config, loaded, plan) <= EXACT


@pytest.mark.parametrize("layers", [3, 4])
@pytest.mark.parametrize("variant", ["distilbert", "distilbert text-classifier", "distilbert encoder"])
def test_post_norm_depth_is_exact_up_to_a_constant_too(variant, layers):
    source = sample(variant)
    weights = {name: tensor.float().double() for name, tensor in randomised(source).items()}
    large, target, plan = grown(weights, source, sample(variant, layers=layers))
    found = verify(runnable(source, weights), runnable(target, large), plan)
    assert plan.moves_norm_affines and found.lossless
    assert found.float64 <= EXACT and 0 < found.tolerance <= 10 * plan.target.epsilon.value


@pytest.mark.parametrize("variant", ["distilbert", "distilbert encoder"])
def test_sinusoidal_positions_grow_as_a_table_of_so_many_rows(variant, tmp_path):
    """`from_pretrained` takes the file's table; no row could be appended but the code's own."""
    source, target, longer = (sample(variant, **sizes) for sizes in ({}, times(2, layers=3), {"positions": 20}))
    for config in (source, target, longer):
        config.sinusoidal_pos_embds = True
    weights = randomised(source)
    tensors, target, plan = grown(weights, source, target)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(models.config_text(target, "float64"))
    model = models.of_config(target).head(target).public_class.from_pretrained(tmp_path)
    parameters = dict(model.named_parameters())
    loaded = {row.name: parameters[row.module].detach() for row in models.architecture_of(model.config).rows()}
    assert model.config.sinusoidal_pos_embds and difference(source, weights, model.config, loaded, plan) <= EXACT
    with pytest.raises(UserError, match="positions changes from 14 to 20; it has to stay as it is"):
        grown(weights, source, longer)


@pytest.mark.parametrize("variant", ["opt", "distilbert"])
def test_a_remainder_is_refused_with_its_reason(variant):
    source = sample(variant)
    with pytest.raises(UserError, match=r"the norms' epsilon is a constant .*1e-(05|12).* choose a multiple of 12"):
        grown(randomised(source), source, sample(variant, hidden=20, heads=5))


def test_a_tied_decoder_behind_a_norm_without_gain_is_refused():
    """Copies in the embedding count twice, and nothing could divide by two."""
    small, large = (sample("opt", **sizes) for sizes in ({}, times(2)))
    for config in (small, large):
        config.layer_norm_elementwise_affine = False
    with pytest.raises(UserError, match=r"the last norm has no gain .* untie the decoder or keep the width"):
        grown(randomised(small), small, large)


@pytest.mark.parametrize(
    "key, value", [("do_layer_norm_before", False), ("word_embed_proj_dim", 6), ("_remove_final_layer_norm", True)]
)
def test_opt_350m_is_refused(key, value):
    config = sample("opt")
    setattr(config, key, value)
    with pytest.raises(UserError, match=key):
        models.architecture_of(config)

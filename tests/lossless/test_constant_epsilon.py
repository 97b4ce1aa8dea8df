"""Norms whose epsilon is a constant of the code (OPT): width grows by whole multiples, anything else by any amount."""

import pytest
import transformers
from safetensors.torch import save_file

from pipeline import models
from pipeline.errors import UserError
from tests.helpers.growing import EXACT, difference, grown, randomised, times
from tests.helpers.samples import sample

EVERYTHING = times(2, mlp=51, layers=3, vocab=70, positions=20)
"""Twice the width, an odd MLP, a layer, tokens and positions appended."""


@pytest.mark.parametrize("variant", ["opt", "opt untied", "opt encoder", "opt without bias", "opt without affine"])
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


def test_a_remainder_is_refused_with_its_reason():
    source = sample("opt")
    with pytest.raises(UserError, match=r"the norms' epsilon is a constant .*1e-05.* choose a multiple of 12"):
        grown(randomised(source), source, sample("opt", hidden=20, heads=5))


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

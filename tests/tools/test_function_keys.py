"""Whatever a config says of the function: a growth keeps it, and a verification sees that it was changed."""

import copy
import re
import shutil

import pytest

from pipeline import models
from pipeline.errors import UserError
from pipeline.expansion import target as targets
from tests.helpers.checkpoints import saved
from tests.helpers.cli import lemon
from tests.helpers.samples import sample
from tests.helpers.variations import edit

OTHERS = {
    "model_type": None,
    "tie_word_embeddings": None,
    "classifier_pooling": "mean",
    "summary_type": "last",
    "summary_activation": "tanh",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 40.0,
    "sliding_window": 5000,
    "use_bidirectional_attention": True,
}
"""Another value of keys of which no other follows from their own. None: what the parameters say, which are compared."""
KEYS = [(name, key) for name, family in models.FAMILIES.items() for key in family.keys.function if OTHERS.get(key, 1)]

LOADED_ALL_THE_SAME = {("bert-pre-ln", "add_cross_attention")}
"""Its code has no such attention, whatever the key says."""
NOT_LOADED = {
    "_remove_final_layer_norm",
    "add_cross_attention",
    "attention_bias",
    "classifier_bias",
    "decoder_bias",
    "do_layer_norm_before",
    "enable_bias",
    "layer_norm_elementwise_affine",
    "mlm_transform",
    "mlp_bias",
    "norm_bias",
    "num_channels",
    "num_register_tokens",
    "qkv_bias",
    "type_vocab_size",
    "use_bidirectional_attention",
    "use_mask_token",
    "use_swiglu_ffn",
}
"""Keys with another value of which a model has other parameters, or is of no kind that is known."""
OF_OTHER_MODELS = [(name, key) for name, key in KEYS if key in NOT_LOADED and (name, key) not in LOADED_ALL_THE_SAME]
OF_THE_SAME_WEIGHTS = [each for each in KEYS if each not in OF_OTHER_MODELS]


def other(config: object, key: str) -> object:
    """Another value of a key, as its class takes it."""
    stated = getattr(config, key)
    if key in OTHERS:
        return OTHERS[key]
    if isinstance(stated, bool):
        return not stated
    if isinstance(stated, str):
        return "relu" if stated != "relu" else "gelu"
    if isinstance(stated, dict):
        return _other_rotation(stated)
    return 2 * stated


def _other_rotation(stated: dict) -> dict:
    changed = copy.deepcopy(stated)
    for each in changed.values() if any(isinstance(each, dict) for each in changed.values()) else (changed,):
        each["rope_theta"] = 2 * each["rope_theta"]
    return changed


@pytest.mark.parametrize("name, key", KEYS)
def test_a_growth_keeps_it(name, key):
    target = sample(name)
    setattr(target, key, other(target, key))
    with pytest.raises(UserError, match=r"the target's config has \w+ .* a growth keeps it"):  # or what follows from it
        targets.adopt(sample(name), target)


def refusal(tmp_path, capsys, name: str, key: str) -> str:
    """What `lemon verify` says of two models of the same weights, the second of another value of a key."""
    small = saved(tmp_path / "small", name)
    if key == "sliding_window" and "use_sliding_window" in models.family(name).keys.function:
        edit(small, use_sliding_window=True, sliding_window=4096)  # the class drops the key without the other
    large = edit(shutil.copytree(small, tmp_path / "large"), **{key: other(sample(name), key)})
    code, out, err = lemon(capsys, "verify", small, large)
    assert code == 2 and "lossless" not in out and err.count("\n") == 1, out + err
    return err


@pytest.mark.parametrize("name, key", OF_THE_SAME_WEIGHTS)
def test_a_verification_refuses_another_value(tmp_path, capsys, name, key):
    """The same weights load, and most keys show nothing on a probe."""
    assert re.search("that is another function|long texts have other", refusal(tmp_path, capsys, name, key))


@pytest.mark.parametrize("name, key", OF_OTHER_MODELS)
def test_weights_do_not_load_into_another_model(tmp_path, capsys, name, key):
    said = refusal(tmp_path, capsys, name, key)
    assert re.search("is it the right config|is not supported|from_pretrained of transformers", said)


@pytest.mark.parametrize(
    "name, key, head",
    [
        ("modernbert", "classifier_pooling", "modernbert"),
        ("vit", "pooler_act", "vit"),
        ("gpt2", "summary_type", "gpt2 encoder"),
        ("opt", "activation_function", "opt"),
    ],
)
def test_the_key_is_named(tmp_path, capsys, name, key, head):
    small = saved(tmp_path / "small", head)
    large = edit(shutil.copytree(small, tmp_path / "large"), **{key: other(sample(name), key)})
    code, _, err = lemon(capsys, "verify", small, large)
    assert code == 2 and f"the target's config has {key} " in err and "that is another function" in err


def test_a_key_that_nobody_knows_is_told(tmp_path, capsys):
    """As a script of another project leaves it: a growth to such a target is refused, what is there is measured."""
    small = saved(tmp_path / "small", "opt")
    large = edit(shutil.copytree(small, tmp_path / "large"), of_another_project=1)
    code, out, _ = lemon(capsys, "verify", small, large)
    assert code == 0 and "result the target's config has of_another_project 1" in " ".join(out.split())

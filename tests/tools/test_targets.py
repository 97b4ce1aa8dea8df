"""What a user may name as the target, and the config that follows from it."""

import json

import pytest

from pipeline import checkpoints, models
from pipeline.errors import UserError
from pipeline.expansion import target as targets
from tests.helpers.checkpoints import saved
from tests.helpers.cli import lemon
from tests.helpers.samples import sample

GROUPED = ", ".join(name for name, family in models.FAMILIES.items() if "kv_heads" in family.optional_sizes)

YAML = """
name: t
data: {kind: text}
models:
  llama: {family: llama, layers: 3, hidden: 24, heads: 6, kv_heads: 3, mlp: 40}
  gpt2: {family: gpt2, layers: 3, hidden: 20, heads: 5, mlp: 33}
  qwen3: {family: qwen3, layers: 4, hidden: 20, heads: 5, mlp: 33}
  phi3: {family: phi3, layers: 3, hidden: 24, heads: 6, mlp: 33, rope_theta: 1.0e+4}
  dinov2: {family: dinov2, layers: 3, hidden: 24, heads: 6, mlp: 48}
  opt: {family: opt, layers: 3, hidden: 24, heads: 6, mlp: 33}
  grouped: {family: gpt2, layers: 3, hidden: 20, heads: 5, kv_heads: 1}
  vit: {family: vit, layers: 3, hidden: 24, heads: 6, mlp: 48, patch: 2}
stages: [{kind: train, name: a, model: gpt2, batch: 2, schedule: {peak: 1, horizon: 1 steps}}]
"""


@pytest.mark.parametrize(
    "variant, sizes",
    [("llama", {"kv_heads": 3}), ("gpt2", {}), ("qwen3 tied", {}), ("phi3", {}), ("dinov2", {}), ("opt", {})],
)
def test_a_yaml_model_of_any_family(tmp_path, capsys, variant, sizes):
    """Sizes are the YAML's; vocabulary, positions, head and tying the source's."""
    (tmp_path / "t.yaml").write_text(YAML)
    small, name = saved(tmp_path / "small", variant, **sizes), variant.split()[0]
    code, _, err = lemon(
        capsys, "expand", "--source", small, "--target", f"{tmp_path / 't.yaml'}:{name}", "--out", tmp_path / "large"
    )
    assert code == 0, err
    _, config = checkpoints.read(tmp_path / "large")
    grown, before = (models.architecture_of(config).sizes(), models.architecture_of(sample(variant, **sizes)).sizes())
    assert (
        grown["layers"] > before["layers"] and grown["embed"] in (20, 24) and grown.get("vocab") == before.get("vocab")
    )
    assert config.architectures == sample(variant).architectures
    if variant == "llama":
        assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (6, 3, 4)


@pytest.mark.parametrize(
    "name, variant, complaint",
    [
        ("grouped", "gpt2", f"models of family 'gpt2' have no kv_heads, got 1; remove it ({GROUPED} have one)"),
        ("vit", "vit", "patch shrinks from 4 to 2"),
    ],
)
def test_every_size_of_a_yaml_model_counts(tmp_path, capsys, name, variant, complaint):
    """One that the family has is the target's, one that it has not is refused; none is without effect."""
    (tmp_path / "t.yaml").write_text(YAML)
    target = f"{tmp_path / 't.yaml'}:{name}"
    code, _, err = lemon(capsys, "plan", "--source", saved(tmp_path / "small", variant), "--target", target)
    assert code == 2 and complaint in err and err.count("\n") == 1, err


def test_only_sizes_and_what_counts_in_training_are_the_targets():
    small, target = sample("bert", eps=1e-7), sample("bert", hidden=24, heads=6)
    target.update({"hidden_dropout_prob": 0.3, "initializer_range": 0.05, "pad_token_id": 3, "layer_norm_eps": 0.5})
    grown = targets.adopt(small, target)
    assert (grown.hidden_size, grown.hidden_dropout_prob, grown.initializer_range) == (24, 0.3, 0.05)
    assert (grown.pad_token_id, grown.layer_norm_eps) == (small.pad_token_id, 1e-7)


@pytest.mark.parametrize(
    "small, large, stated, used",
    [
        ({}, {"head_dim": 8}, 8, 8),
        ({"head_dim": 8}, {"head_dim": 8, "layers": 3}, 8, 8),
        ({"head_dim": 2}, {"hidden": 24}, None, 8),
        ({}, {"head_dim": None}, None, 4),
    ],
    ids=["the target's", "both", "the source's", "null"],
)
@pytest.mark.parametrize("variant", ["vit", "deit", "dinov2"])
def test_a_head_dim_that_the_config_class_does_not_declare(variant, small, large, stated, used):
    """The model's code reads it all the same; without it, the heads of the target share its width."""
    grown = targets.adopt(sample(variant, **small), sample(variant, **large))
    assert grown.to_dict().get("head_dim") == stated
    assert models.architecture_of(grown).sizes()["head_dim"] == used
    models.build(grown)


@pytest.mark.parametrize(
    "variant, key, value",
    [
        ("llama", "rope_parameters", {"rope_theta": 5.0, "rope_type": "default"}),
        ("llama", "hidden_act", "gelu"),
        ("llama", "attention_bias", True),
        ("gpt2", "tie_word_embeddings", False),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("vit", "qkv_bias", False),
        ("bert", "is_decoder", True),
        ("opt", "activation_function", "gelu"),
        ("opt", "a_key_that_nobody_knows_like_dropout", 1),
    ],
)
def test_what_decides_the_function_must_agree(variant, key, value):
    target = sample(variant)
    setattr(target, key, value)
    with pytest.raises(UserError, match=f"the target's config has {key} .* a growth keeps it"):
        targets.adopt(sample(variant), target)


def test_impossible_sizes_are_one_line(tmp_path, capsys):
    small = saved(tmp_path / "small", "llama")
    target = {**sample("llama").to_dict(), "hidden_size": 22}
    (tmp_path / "t.json").write_text(json.dumps(target))
    code, _, err = lemon(
        capsys, "plan", "--source", small, "--target", tmp_path / "t.json", "--out", tmp_path / "plan.json"
    )
    assert code == 2 and err.count("\n") == 1 and "not a config of 'llama'" in err and "22" in err


@pytest.mark.parametrize("name", ["sizes.json", "sizes.yaml"])
def test_a_list_of_sizes_alone(tmp_path, capsys, name):
    """All that it does not say is the source's."""
    small = saved(tmp_path / "small", "bert")
    (tmp_path / name).write_text(json.dumps({"hidden_size": 24, "num_attention_heads": 6}))
    code, _, err = lemon(capsys, "expand", "--source", small, "--target", tmp_path / name, "--out", tmp_path / "large")
    assert code == 0, err
    before, after = checkpoints.read(small)[1], checkpoints.read(tmp_path / "large")[1]
    assert (after.hidden_size, after.num_attention_heads) == (24, 6)
    assert (after.intermediate_size, after.num_hidden_layers) == (before.intermediate_size, before.num_hidden_layers)


def test_a_list_with_something_else_than_sizes(tmp_path, capsys):
    small = saved(tmp_path / "small", "bert")
    (tmp_path / "t.json").write_text(json.dumps({"hidden_size": 24, "hidden_sise": 6}))
    code, _, err = lemon(capsys, "plan", "--source", small, "--target", tmp_path / "t.json")
    assert code == 2 and "t.json: it names no model_type: add it" in err and err.count("\n") == 1, err


UNREAD = {
    "gpt2": {"n_special": 0, "n_ctx": 14, "predict_special_tokens": True, "unsloth_fixed": True},
    "bert": {"gradient_checkpointing": False, "directionality": "bidi", "pooler_type": "x", "pooler_fc_size": 768},
}
"""Keys of published configs that no class declares and no model reads."""


@pytest.mark.parametrize("variant", UNREAD)
def test_keys_that_no_model_reads_decide_nothing(variant):
    plain, published = sample(variant), sample(variant)
    published.update(UNREAD[variant])
    assert targets.adopt(plain, published) and targets.adopt(published, plain)


def test_a_key_of_which_the_targets_file_says_nothing_is_the_sources():
    small = sample("opt")
    small.update({"a_key_of_the_source_alone": 1})
    assert targets.adopt(small, sample("opt")).a_key_of_the_source_alone == 1

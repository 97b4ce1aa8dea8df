"""ModernBERT's config in the keys of transformers 4 and in those of 5: what is read means the same, and what is written
holds both."""

import json

import pytest

from pipeline import models
from pipeline.models.layer_types import FULL_ATTENTION as FULL
from pipeline.models.layer_types import SLIDING_ATTENTION as SLIDING
from tests.helpers.samples import sample

PUBLISHED = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 50281,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 50281,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "eos_token_id": 50282,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "reference_compile": False,
    "repad_logits_with_grad": False,
    "sep_token_id": 50282,
    "sparse_pred_ignore_index": -100,
    "sparse_prediction": False,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.48.0",
    "vocab_size": 50368,
}
"""The keys of ModernBERT-base."""


def written(content: dict) -> dict:
    return json.loads(models.config_text(models.recognise(content, "config.json")[1]))


def test_a_published_config_is_read():
    family, config = models.recognise(PUBLISHED, "config.json")
    architecture = models.architecture_of(config)
    assert family.name == "modernbert" and architecture.parameters == 149_655_232
    assert config.layer_types == [SLIDING if layer % 3 else FULL for layer in range(22)]
    assert architecture.stacks[0].period == 3 and architecture.stacks[0].blocks == 7
    assert family.windows(config)[:4] == (None, 65, 65, None)
    known = {*family.keys.sizes, *family.keys.training, *family.keys.kept, *family.keys.function, *family.keys.derived}
    older = set(models.of_config(config).pattern.older_keys(config))
    assert set(config.to_dict()) <= known and set(PUBLISHED) <= known | older


def test_what_is_written_holds_the_keys_of_both_versions():
    others = {"global_attn_every_n_layers": 2, "global_rope_theta": 5e4, "local_rope_theta": 7e3}
    content = written({**PUBLISHED, **others})
    assert {key: content[key] for key in others} == others
    assert content["layer_types"][:3] == [FULL, SLIDING, FULL]
    assert {kind: rope["rope_theta"] for kind, rope in content["rope_parameters"].items()} == {FULL: 5e4, SLIDING: 7e3}
    assert written(content) == content


@pytest.mark.parametrize("layers, stated", [(4, 2), (2, 3), (5, 5), (6, 1)])
def test_a_config_of_transformers_5_alone_says_how_often_layers_attend_to_all(layers, stated):
    types = [SLIDING if layer % stated else FULL for layer in range(layers)]
    older = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")
    content = {key: value for key, value in PUBLISHED.items() if key not in older}
    content |= {"num_hidden_layers": layers, "layer_types": types}
    found = written(content)
    assert found["global_attn_every_n_layers"] == stated and found["global_rope_theta"] == 160000.0
    assert models.architecture_of(models.recognise(content, "x")[1]).stacks[0].period == stated


def test_types_in_no_such_order_are_followed_layer_by_layer():
    """transformers 4 has no words for them: it gets null, on which it fails."""
    content = {**PUBLISHED, "num_hidden_layers": 3, "layer_types": [SLIDING, FULL, FULL]}
    assert models.architecture_of(models.recognise(content, "x")[1]).stacks[0].period == 1
    assert written(content)["layer_types"] == [SLIDING, FULL, FULL]
    assert written(content)["global_attn_every_n_layers"] is None


def test_rotary_positions_of_one_kind_of_layers_may_count_positions():
    config = sample("modernbert")
    assert not models.rotation_counts_positions(config)
    config.rope_parameters[FULL] |= {"rope_type": "dynamic", "factor": 2.0}
    assert models.rotation_counts_positions(config)

"""A model that starts from a checkpoint: which head it gets, which parameters are taken, what is refused."""

from pathlib import Path

import pytest
import torch
import yaml

from pipeline import models
from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.expansion import target as targets
from pipeline.models import starts
from tests.helpers import cli
from tests.helpers.invented_text import some_documents, text_file
from tests.helpers.samples import VARIANTS, facts, sample

SIZES = {"layers": 2, "hidden": 12, "heads": 3, "mlp": 20}
"""Of the samples."""
UNTRAINED = [name for name in VARIANTS if not models.of_config(sample(name)).head(sample(name)).trained_here]
"""Bare encoders, and heads that are not trained here."""


def sizes_of(variant: str, **changes: object) -> ModelSizes:
    family = variant.split()[0]
    own = {"patch": 4} if models.family(family).data == "images" else {}
    mlp = {"mlp": 12} if family.startswith("dinov2") else {}
    layers = {"layers": models.architecture_of(sample(variant)).stacks[0].layers}
    return ModelSizes(**{"family": family, **SIZES, **layers, **own, **mlp, **changes})


def named(prefix: str, config) -> set[str]:
    """The parameters beside those of the bare model."""
    return {row.name for row in models.architecture_of(config).rows() if not row.name.startswith(prefix)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_that_has_a_loss_is_taken_whole(variant):
    stored = sample(variant)
    if not models.of_config(stored).head(stored).trained_here:
        return
    config = starts.adapted(stored, facts(variant))
    starts.require(config, sizes_of(variant), facts(variant))
    assert config.architectures == stored.architectures and not starts.fresh(stored, config)
    assert all(name == there for name, there in starts.sources(stored, config).items())


@pytest.mark.parametrize("variant", UNTRAINED)
def test_a_bare_encoder_gets_its_familys_head(variant):
    stored = sample(variant)
    config = starts.adapted(stored, facts(variant))
    starts.require(config, sizes_of(variant), facts(variant))
    family = models.of_config(config)
    assert family.head(config) is family.heads[0]
    prefix = f"{family.heads[0].model_class.base_model_prefix}."
    there = {row.name for row in models.architecture_of(stored).rows()}
    assert set(starts.fresh(stored, config)) == named(prefix, config) - there
    held = models.build(stored, seed=1)
    published = {row.name: row.module_name for row in models.architecture_of(stored).rows()}
    weights = dict(held.named_parameters())
    begun = models.fill(
        models.build(config, seed=2), lambda name: weights[published[name]], starts.sources(stored, config)
    )
    inside = getattr(begun, begun.base_model_prefix)
    taken = dict(inside.named_parameters())
    bare = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    assert taken and all(torch.equal(tensor, bare[name]) for name, tensor in taken.items())


@pytest.mark.parametrize(
    "variant, gone",
    [
        ("bert pre-training", {"bert.pooler.dense", "cls.seq_relationship"}),
        ("bert text-classifier", {"bert.pooler.dense", "classifier"}),
        ("bert question-answering", {"qa_outputs"}),
        ("roberta text-classifier", {"classifier.dense", "classifier.out_proj"}),
        ("xlm-roberta text-classifier", {"classifier.dense", "classifier.out_proj"}),
        ("modernbert text-classifier", {"classifier"}),
        ("modernbert question-answering", {"classifier"}),
        ("bert encoder", {"pooler.dense"}),
        ("bert encoder without pooler", set()),
        ("vit encoder", {"pooler.dense"}),
        ("bert", set()),
        ("vit", set()),
    ],
)
def test_what_is_not_trained_is_named(variant, gone):
    """Heads that this package trains not: the encoder goes on, under the head that its family is trained with."""
    stored = sample(variant)
    config = starts.adapted(stored, facts(variant))
    left = {f"{name}.{part}" for name in gone for part in ("weight", "bias")}
    assert set(starts.left_behind(stored, config)) == left
    assert not left & {*starts.fresh(stored, config), *starts.sources(stored, config).values()}
    assert models.of_config(config).head(config).trained_here and models.has_pooler(config)


def test_a_head_without_labels_has_no_loss():
    """A fit does not choose another head: its target has that of its source."""
    data = facts("bert")
    assert starts.unreadable(sample("bert text-classifier"), data) == (
        "the data have no labels for its head (text-classifier), and so no loss; take a BertForMaskedLM"
    )
    assert "the model has no head" in starts.unreadable(sample("bert encoder"), data)


@pytest.mark.parametrize("variant", ["vit", "deit", "deit distilled", "dinov2", "dinov2-with-registers"])
def test_other_classes_get_another_last_layer(variant):
    stored, other = sample(variant), {**facts(variant), "class_names": ["a", "b", "c", "d"]}
    config = starts.adapted(stored, other)
    starts.require(config, sizes_of(variant), other)
    assert starts.fresh(stored, config) == ["classifier.weight", "classifier.bias"]
    assert config.id2label == {0: "a", 1: "b", 2: "c", 3: "d"}


@pytest.mark.parametrize(
    "variant, sizes, data, complaint",
    [
        ("llama", {"layers": 3}, {}, "layers is 2 there and 3 in the model"),
        ("llama", {"kv_heads": 1}, {}, "kv heads is 3 there and 1 in the model"),
        ("gpt2", {"mlp": 24}, {}, "mlp is 20 there and 24 in the model"),
        ("vit", {"patch": 2}, {}, "patch is 4 there and 2 in the model"),
        ("llama", {"tied": True}, {}, "tie_word_embeddings is False there and True in the model; leave it out"),
        ("bert", {"family": "roberta"}, {}, "a 'bert', and the model is a 'roberta'"),
        ("llama", {}, {"vocab_size": 62}, "the model has vocab_size 61, the tokenizer of the data 62 pieces"),
        ("gpt2", {}, {"block": 15}, "blocks of 15 tokens are longer than the model's 14 positions"),
        ("roberta", {}, {"block": 15}, "blocks of 15 tokens are longer than the model's 14 positions"),
        ("vit", {}, {"channels": 1}, "the model has num_channels 3, the data 1"),
    ],
)
def test_what_does_not_fit_is_refused(variant, sizes, data, complaint):
    stored, given = sample(variant), {**facts(variant), **data}
    with pytest.raises(UserError, match=complaint):
        starts.require(starts.adapted(stored, given), sizes_of(variant, **sizes), given)


@pytest.mark.parametrize("variant", ["gpt2", "roberta", "bert", "opt"])
def test_a_growth_has_positions_for_the_longest_block_of_the_run(variant):
    """And never fewer than its source."""
    stored = sample(variant)
    family = models.of_config(stored)
    for longest, expected in ((9, 14), (14, 14), (21, 21)):
        given = {**facts(variant), "block": 9, "positions": longest}
        grown = targets.of_sizes(stored, sizes_of(variant), given)
        assert grown.max_position_embeddings - family.reserved == expected
        assert starts.unreadable(grown, given) is None


@pytest.mark.parametrize("variant", ["llama", "phi3"])
def test_a_base_of_rotary_positions_that_is_stated_is_compared(variant):
    """And nothing else of them, such as how much of a head turns."""
    stored = sample(variant)
    starts.require(stored, sizes_of(variant, rope_theta=1e4), facts(variant))
    with pytest.raises(UserError, match=r"rope_parameters is .*10000.* there and .*20000.* in the model; leave it out"):
        starts.require(stored, sizes_of(variant, rope_theta=2e4), facts(variant))


def test_what_matters_to_training_alone_is_the_runs():
    config = starts.with_training_keys(sample("bert"), sizes_of("bert", dropout=0.2, init=0.05))
    assert (config.hidden_dropout_prob, config.initializer_range) == (0.2, 0.05)
    assert config.layer_norm_eps == sample("bert").layer_norm_eps


def test_a_run_refuses_another_model_before_it_trains(tmp_path, capsys):
    """Whatever stands between the folder and the stage."""
    models.build(sample("llama", positions=32)).save_pretrained(tmp_path / "published")
    words = text_file(tmp_path / "words.txt", some_documents())
    train = {"kind": "train", "batch": 8, "schedule": {"peak": 1e-3, "horizon": "4 steps"}}
    model = {"family": "llama", **SIZES}
    content = {
        "name": "words",
        "folder": str(tmp_path / "run"),
        "processes": 1,
        "data": {
            "kind": "text",
            "dataset": str(words),
            "tokenizer": {"vocab_size": 200},
            "block": 32,
            "evaluation_blocks": 8,
        },
        "models": {"small": model, "large": {**model, "layers": 3}},
        "stages": [
            {"kind": "expand", "name": "grown", "source": str(tmp_path / "published"), "model": "large"},
            {**train, "name": "on", "model": "small", "start": str(tmp_path / "published")},
            {**train, "name": "after", "model": "large", "start": "grown"},
        ],
    }
    path = Path(tmp_path / "words.yaml")
    path.write_text(yaml.safe_dump(content))
    code, _, error = cli.lemon(capsys, "run", path, "--dry-run")
    expected = "cannot be trained as model 'small' in stages.on: the model has vocab_size 61, the tokenizer of"
    assert code == 2 and error.count("\n") == 1 and expected in error
    content["data"]["tokenizer"]["vocab_size"] = 64
    content["data"]["block"] = 33
    path.write_text(yaml.safe_dump(content))
    code, _, error = cli.lemon(capsys, "run", path, "--dry-run")
    assert code == 2 and "vocab_size 61, the tokenizer of the data 64 pieces" in error

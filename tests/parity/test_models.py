"""Our models against transformers' own, on random weights: the same numbers, saved and loaded without loss."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    BertForMaskedLM,
    DistilBertForMaskedLM,
    ModernBertForMaskedLM,
    RobertaForMaskedLM,
    RobertaPreLayerNormConfig,
)
from transformers.models.roberta_prelayernorm.modeling_roberta_prelayernorm import RobertaPreLayerNormEncoder

from pipeline import models
from pipeline.growth.verification.probe import cast
from tests.helpers.samples import POSITIONS, VARIANTS, VOCAB, sample

TIGHT = {"rtol": 0, "atol": 1e-12}
"""float64: the same operations in the same order, but for fused attention."""


def randomised(name: str):
    model = models.build(sample(name, eps=1e-12)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(VOCAB, (3, POSITIONS))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    "name", ["bert-pre-ln", "bert-pre-ln transform", "bert", "roberta", "distilbert", "distilbert untied", "modernbert"]
)
def test_scoring_some_positions_is_scoring_all_and_choosing(name):
    model, inputs = randomised(name), batch()
    positions = torch.tensor([[0, 3, 6], [11, 2, 2], [5, 1, 9]])
    everywhere = model(**inputs).logits
    expected = everywhere.gather(1, positions[..., None].expand(-1, -1, everywhere.shape[-1]))
    torch.testing.assert_close(model(**inputs, masked_positions=positions).logits, expected, **TIGHT)


@pytest.mark.parametrize(
    "name, their_class",
    [
        ("bert", BertForMaskedLM),
        ("roberta", RobertaForMaskedLM),
        ("distilbert", DistilBertForMaskedLM),
        ("modernbert", ModernBertForMaskedLM),
    ],
)
def test_the_models_that_score_positions_are_those_of_transformers(name, their_class):
    ours, inputs = randomised(name), batch()
    theirs = their_class(ours.config).double().eval()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, **TIGHT)


@pytest.mark.parametrize("padded", [False, True])
def test_modernbert_in_float64_is_what_it_is_in_float32(padded):
    """Its own attention turns queries and keys in float32; ours differs from it by that rounding alone."""
    model, inputs = randomised("modernbert"), batch()
    inputs = inputs if padded else {"input_ids": inputs["input_ids"]}
    rounded = model(**inputs).logits
    found = cast(model, torch.float64)(**inputs).logits
    assert 0 < (found - rounded).abs().max() < 1e-5 * rounded.abs().max()


def test_pre_ln_bert_is_transformers_pre_ln_encoder():
    """RobertaPreLayerNorm has the same layers under the same names; only its embeddings differ."""
    ours, inputs = randomised("bert-pre-ln"), batch()
    config = RobertaPreLayerNormConfig(
        **{k: v for k, v in ours.config.to_dict().items() if k != "model_type"}, attn_implementation="sdpa"
    )
    encoder = RobertaPreLayerNormEncoder(config).double().eval()
    encoder.load_state_dict(ours.bert.encoder.state_dict())
    hidden = ours.bert.embeddings(inputs["input_ids"], None)
    bias = torch.zeros(3, 1, 1, POSITIONS, dtype=torch.float64).masked_fill(
        inputs["attention_mask"][:, None, None] == 0, -torch.inf
    )
    expected = ours.bert.LayerNorm(encoder(hidden, attention_mask=bias).last_hidden_state)
    torch.testing.assert_close(ours.bert(**inputs).last_hidden_state, expected, **TIGHT)


def test_pre_ln_bert_saves_and_loads_by_the_auto_classes(tmp_path):
    model, inputs = randomised("bert-pre-ln"), batch()
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, **TIGHT)
    bare = AutoModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(bare(**inputs).last_hidden_state, model.bert(**inputs).last_hidden_state, **TIGHT)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "bert-pre-ln"
    assert again.cls.predictions.decoder.weight is again.bert.embeddings.word_embeddings.weight


@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_seed_gives_the_same_model(name):
    config = sample(name)
    first, second, other = (models.build(config, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["bert-pre-ln", "bert", "roberta", "distilbert", "modernbert"])
def test_labels_give_a_loss_as_in_transformers(name):
    model, inputs = randomised(name), batch()
    labels = inputs["input_ids"].masked_fill(torch.rand(3, POSITIONS) < 0.7, -100)
    result = model(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(result.logits.float().flatten(0, 1), labels.flatten())
    torch.testing.assert_close(result.loss, expected)

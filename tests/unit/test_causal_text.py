"""Text for causal models: the rows of the prepared data, each token a label of the position before it, and tokenizers
that cannot mask."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
import yaml

from pipeline import models
from pipeline.config.model_sizes import ModelSizes
from pipeline.data import evaluation_batches, prepare, train_batches
from pipeline.data.inventory import inventory
from pipeline.errors import UserError
from pipeline.training.losses import per_sample
from tests.helpers import cli
from tests.helpers.invented_text import config, some_documents, text_file
from tests.helpers.published import byte_pairs

FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "opt")


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal")
    data = config(text_file(folder / "text.txt", some_documents()))
    return data, replace(prepare(data, 3, folder / "data"), causal=True)


def training(causal, seed=3, **changes):
    data, prepared = causal
    ranks = {"batch": 8, "micro_batch": 8, "rank": 0, "world": 1, "first_step": 0, **changes}
    return train_batches(prepared, data, seed, **ranks)


def test_every_token_of_an_epoch_is_a_label_once(causal):
    _, prepared = causal
    rows = np.array(prepared.samples().rows["training"], dtype=np.int64)
    special, seen = prepared.facts["special"], []
    for batch in islice(training(causal, batch=1, micro_batch=1), prepared.size):
        ids = batch.inputs["input_ids"]
        assert set(batch.inputs) == {"input_ids"} and ids.shape == (1, 32) and batch.labels.shape == (1, 30)
        assert ids[0, 0] == special["cls"] and ids[0, -1] == special["sep"]
        assert torch.equal(ids[:, 1:-1], batch.labels)
        seen.append(tuple(batch.labels[0].tolist()))
    assert Counter(seen) == Counter(map(tuple, rows.tolist()))


def test_neither_ranks_nor_the_first_step_change_a_batch(causal):
    one = list(islice(training(causal, batch=16, micro_batch=4), 12))
    ranks = [list(islice(training(causal, batch=16, micro_batch=4, rank=rank, world=2), 6)) for rank in (0, 1)]
    two = [part for turn in zip(*ranks, strict=True) for part in turn]
    later = list(islice(training(causal, batch=16, micro_batch=4, first_step=2), 4))
    for ours, theirs in [*zip(one, two, strict=True), *zip(one[8:], later, strict=True)]:
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.inputs["input_ids"], theirs.inputs["input_ids"])


def test_the_evaluation_is_the_same_under_every_seed(causal):
    data, prepared = causal
    one, other = (list(evaluation_batches(prepared, data, seed, micro_batch=4, rank=0, world=1)) for seed in (0, 1))
    assert sum(batch.valid for batch in one) == prepared.facts["evaluation"]
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_the_next_tokens_as_transformers_has_them(causal, family):
    """Its own loss, of which the last label, the [SEP] that ends every block, does not count."""
    sizes = ModelSizes(family=family, layers=2, hidden=24, heads=3)
    model = models.build(models.trained(sizes, causal[1].facts), seed=1).eval()
    batch = next(training(causal))
    ids = batch.inputs["input_ids"]
    with torch.no_grad():
        ours = per_sample(model(input_ids=ids).logits, batch.labels)[0].mean()
        theirs = model(input_ids=ids, labels=ids.index_fill(1, torch.tensor([ids.shape[1] - 1]), -100)).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


# --- tokenizers ----------------------------------------------------------------------------------------------------


GPT2 = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
QWEN = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
LLAMA = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    "tokens, special",
    [(GPT2, {"unk": 0, "cls": 0, "sep": 0}), (QWEN, {"pad": 1, "cls": 0, "sep": 0}), (LLAMA, {"cls": 1, "sep": 0})],
    ids=["gpt2", "qwen", "llama"],
)
def test_a_causal_tokenizer_begins_blocks_and_separates_documents(tmp_path, tokens, special):
    text = text_file(tmp_path / "text.txt", some_documents())
    tokenizer = {"kind": "huggingface", "path": str(byte_pairs(tmp_path / "tokenizer", **tokens))}
    data = config(text, tokenizer=tokenizer)
    prepared = replace(prepare(data, 3, tmp_path / "data"), causal=True)
    assert prepared.facts["special"] == special == inventory(data, 3, tmp_path / "none").data.facts["special"]
    rows = np.arange(prepared.size)
    inputs, labels = prepared.samples().train(3, np.zeros_like(rows), rows)
    assert (inputs["input_ids"][:, 0] == special["cls"]).all()
    assert 250 < (labels == special["sep"]).sum() < 300, "one between every two documents"
    assert 0 < prepared.facts["unigram_entropy"] <= prepared.facts["unigram_cross_entropy"]
    model = models.trained(ModelSizes(family="llama", layers=1, hidden=8, heads=2), prepared.facts)
    assert (model.bos_token_id, model.eos_token_id) == (special["cls"], special["sep"])


def test_a_masked_model_is_refused_such_a_tokenizer_before_the_data_are_read(tmp_path, capsys):
    tokenizer = {"kind": "huggingface", "path": str(byte_pairs(tmp_path / "tokenizer", **GPT2))}
    text = text_file(tmp_path / "text.txt", some_documents())
    content = {
        "name": "words",
        "folder": str(tmp_path / "run"),
        "data": {"kind": "text", "dataset": str(text), "tokenizer": tokenizer, "block": 32, "evaluation_blocks": 8},
        "models": {"small": {"family": "bert", "layers": 1, "hidden": 8, "heads": 2}},
        "stages": [
            {
                "kind": "train",
                "name": "small",
                "model": "small",
                "batch": 8,
                "schedule": {"peak": 1e-3, "horizon": "4 steps"},
            }
        ],
    }
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(content))
    code, _, error = cli.lemon(capsys, "run", tmp_path / "words.yaml", "processes=1")
    assert code == 2 and error.count("\n") == 1 and not (tmp_path / "run").exists()
    assert "models.small: models of family 'bert' are trained by masking, and the tokenizer" in error


def test_roberta_counts_positions_from_behind_the_padding_token(causal):
    _, prepared = causal
    sizes = ModelSizes(family="roberta", layers=1, hidden=8, heads=2)
    model = models.build(models.trained(sizes, prepared.facts), seed=0)
    assert model.config.pad_token_id == prepared.facts["special"]["pad"] == 0
    inputs, labels = replace(prepared, causal=False).samples().train(3, np.zeros(4, dtype=int), np.arange(4))
    assert model(**inputs).logits.shape == (*labels.shape, prepared.facts["vocab_size"])
    elsewhere = {**prepared.facts, "special": {**prepared.facts["special"], "pad": 7}}
    with pytest.raises(UserError, match="padding token's id, and that of the data's tokenizer is 7"):
        models.trained(sizes, elsewhere)

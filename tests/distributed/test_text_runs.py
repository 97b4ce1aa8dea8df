"""Runs on text: documents apart, blocks with too little to predict, and a published model's vocabulary beside a fresh
one."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F
from transformers import BertForMaskedLM

from pipeline import checkpoints, models
from pipeline.config.model_sizes import ModelSizes
from pipeline.data import open_prepared
from tests.helpers.cli import lemon, lemon_here
from tests.helpers.invented_text import some_documents, text_file
from tests.helpers.runs import records

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
BLOCK = 32


def published(folder: Path) -> Path:
    """A small BERT with a row for each of the pieces, and no more."""
    facts = {"kind": "text", "vocab_size": len(PIECES), "block": BLOCK, "scored": 1}
    config = models.trained(ModelSizes(family="bert", layers=1, hidden=16, heads=2, init=0.3), facts)
    models.build(config, seed=1).save_pretrained(folder)
    return folder


def text_run(folder: Path, name: str, **top: object) -> Path:
    """The config of a run whose source is published, beside one from scratch. Documents are a word or two: in many
    a block there is less than is to be predicted."""
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    documents = [" ".join(text.split()[: 1 + number % 2]) for number, text in enumerate(some_documents(400))]
    rate = {"peak": 1e-3, "warmup": "1 steps", "horizon": "2 steps"}
    train = {"kind": "train", "batch": 8, "evaluate_every": "2 steps", "schedule": rate, "attention": "sdpa"}
    model, source = {"family": "bert", "layers": 1, "hidden": 16, "heads": 2}, str(folder / "published")
    content = {
        "name": name,
        "folder": str(folder / name),
        "processes": 2,
        "data": {
            "kind": "text",
            "dataset": str(text_file(folder / "words.txt", documents)),
            "tokenizer": {"kind": "wordpiece", "path": str(folder / "vocab.txt")},
            "block": BLOCK,
            "mask": 0.85,
            "evaluation_blocks": 9,
            "cross_document": False,
        },
        "models": {"small": model, "large": {**model, "hidden": 32, "heads": 4}},
        "stages": [
            {**train, "name": "more", "model": "small", "start": source, "zero_stage": 1},
            {"kind": "expand", "name": "grown", "source": source, "model": "large"},
            {**train, "name": "large", "model": "large", "start": "grown", "zero_stage": 2},
            {**train, "name": "scratch", "model": "large", "zero_stage": 3},
        ],
        **top,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder / f"{name}.yaml"


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    published(folder / "published")
    lemon_here("run", text_run(folder, "one"))
    return folder


def first_evaluation(run: Path, stage: str) -> float:
    return next(record["eval_loss"] for record in records(run, stage) if "eval_loss" in record)


def plain_loss(folder: Path, run: Path) -> float:
    """Of the published model on the run's evaluation set, by transformers alone, block by block: the mean over blocks
    of the mean over the positions that count. The mask of attention is written down entry by entry."""
    net, prepared = BertForMaskedLM.from_pretrained(folder / "published").eval(), open_prepared(run / "data")
    samples, losses = prepared.samples(), []
    for row in range(prepared.facts["evaluation"]):
        inputs, labels = samples.evaluate(0, torch.tensor([row]).numpy())
        ids, numbers = samples.blocks("evaluation", torch.tensor([row]).numpy())[0].tolist(), [0]
        for token in ids[:-1]:
            numbers.append(numbers[-1] + (token == PIECES.index("[SEP]")))
        mask = torch.tensor([[[[a == b for b in numbers] for a in numbers]]])
        with torch.no_grad():
            logits = net(input_ids=inputs["input_ids"], attention_mask=mask).logits[0]
        pairs = zip(inputs["masked_positions"][0].tolist(), labels[0].tolist(), strict=True)
        known = [F.cross_entropy(logits[place], torch.tensor(label)).item() for place, label in pairs if label != -100]
        losses.append(sum(known) / len(known))
    return sum(losses) / len(losses)


def test_the_evaluation_loss_is_that_of_a_plain_loop(ended):
    """1e-5: float32 sums in another order. Positions that do not count are there."""
    assert first_evaluation(ended / "one", "more") == pytest.approx(plain_loss(ended, ended / "one"), abs=1e-5)
    samples = open_prepared(ended / "one" / "data").samples()
    assert (samples.evaluate(0, torch.arange(9).numpy())[1] == -100).any()


def test_a_growth_that_is_lossless_is_so_with_documents_apart(ended):
    before, behind = (first_evaluation(ended / "one", stage) for stage in ("more", "large"))
    assert behind == pytest.approx(before, abs=1e-4)


def test_the_same_weights_have_the_same_loss_under_another_seed(ended):
    """To the bit: masks of the evaluation set follow no seed."""
    path = text_run(ended, "two", seed=7)
    lemon_here("prepare", path)
    lemon_here("train", path, "--stage", "more")
    one, two = ended / "one", ended / "two"
    assert first_evaluation(one, "more") == first_evaluation(two, "more")
    seeds = [json.loads((run / "data" / "data.json").read_text())["seed"] for run in (one, two)]
    assert seeds == [0, 7]


def test_what_goes_on_keeps_its_vocabulary_and_what_is_fresh_has_a_multiple_of_64(ended, capsys):
    """As does what a dry run says of the stages."""
    expected = {"more": len(PIECES), "grown": len(PIECES), "large": len(PIECES), "scratch": 64}
    newest = {stage: checkpoints.locate(ended / "one" / stage) for stage in expected}
    found = {stage: models.read_config(folder / "config.json")[1].vocab_size for stage, folder in newest.items()}
    assert found == expected
    code, out, err = lemon(capsys, "run", ended / "one.yaml", "--dry-run", "--json", f"folder={ended / 'dry'}")
    assert code == 0, err
    for stage in json.loads(out)["stages"]:
        recorded = json.loads((ended / "one" / stage["name"] / "stage.json").read_text())
        assert stage["parameters"] == recorded["parameters"], stage["name"]

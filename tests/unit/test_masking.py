"""Masks: only ordinary pieces are predicted and drawn, shapes are fixed, evaluation follows no seed, old folders keep
their own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.data import TextData
from pipeline.data import evaluation_batches, open_prepared, prepare, train_batches
from pipeline.data.masking import IGNORED, Masking
from pipeline.data.prepared import _own_hash
from pipeline.data.text import TextSamples, document_numbers
from pipeline.errors import UserError
from pipeline.rng import derive
from tests.helpers.invented_text import config, some_documents, text_file

BLOCK = 32
SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
FACTS = {
    "vocab_size": 128,
    "pieces": 100,
    "special": SPECIAL,
    "special_ids": [0, 1, 2, 3, 4, 50],
    "masking": 2,
    "scored": 12,
}
"""A vocabulary with a sixth special piece among the ordinary ones, in a table of more rows."""


def blocks(count: int = 400, separators: float = 0.2, unknown: float = 0.1) -> np.ndarray:
    draw = np.random.default_rng(0)
    ids = draw.integers(5, 100, (count, BLOCK))
    ids[ids == 50] = 51
    kinds = draw.random(ids.shape)
    ids[kinds < separators] = SPECIAL["sep"]
    ids[kinds > 1 - unknown] = SPECIAL["unk"]
    ids[:, 0], ids[:, -1] = SPECIAL["cls"], SPECIAL["sep"]
    return ids


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Tiny documents in short blocks, some with a rare character, a few of which the tokenizer does not know."""
    folder = tmp_path_factory.mktemp("data")
    rare = {number: f" {chr(0x4E00 + number)}" for number in range(0, 900, 10)}
    documents = [" ".join(text.split()[:4]) + rare.get(n, "") for n, text in enumerate(some_documents(900))]
    data = config(text_file(folder / "text.txt", documents), mask=0.4)
    return data, prepare(data, 3, folder / "data")


def test_only_ordinary_pieces_are_predicted_and_drawn():
    ids = blocks(4000)
    read, positions, labels = Masking(FACTS).masked(ids, list(range(len(ids))))
    assert read.shape == ids.shape and positions.shape == labels.shape == (len(ids), 12)
    assert not np.isin(labels, FACTS["special_ids"]).any()
    shown = np.take_along_axis(read, positions, axis=1)
    drawn = shown[(shown != labels) & (shown != SPECIAL["mask"]) & (labels != IGNORED)]
    assert len(drawn) > 3000 and set(drawn.tolist()) == set(range(5, 100)) - {50}
    unpredicted = np.ones(ids.shape, dtype=bool)
    np.put_along_axis(unpredicted, positions, labels == IGNORED, axis=1)
    assert (read == ids)[unpredicted].all()


def test_masks_are_80_10_10_of_the_predicted_and_all_are_as_likely():
    ids = blocks(4000)
    read, positions, labels = Masking(FACTS).masked(ids, list(range(len(ids))))
    counts = labels != IGNORED
    shown, total = np.take_along_axis(read, positions, axis=1), counts.sum()
    masked = ((shown == SPECIAL["mask"]) & counts).sum() / total
    kept = ((shown == labels) & counts).sum() / total
    # Binomial deviations of 48,000 draws: 0.0018 and 0.0014; one of 94 random pieces is the label.
    assert abs(masked - 0.8) < 0.008 and abs(kept - 0.1 - 0.1 / 94) < 0.006
    often = np.bincount(positions[counts], minlength=BLOCK)[1:-1]
    assert often.min() > 0.85 * often.mean() and often.max() < 1.15 * often.mean()


def test_a_block_of_few_ordinary_pieces_has_labels_that_do_not_count():
    """All that there are are predicted, and the others are as they were."""
    ids = blocks(separators=0.5, unknown=0.3)
    ids[0, 1:-1] = SPECIAL["unk"]
    ordinary = (~np.isin(ids, FACTS["special_ids"])).sum(1)
    assert (ordinary < 12).any() and ordinary[0] == 0
    read, positions, labels = Masking(FACTS).masked(ids, list(range(len(ids))))
    assert ((labels != IGNORED).sum(1) == np.minimum(ordinary, 12)).all()
    assert (np.diff(positions, axis=1) > 0).all() and np.array_equal(read[0], ids[0])


def by_hand(ids: np.ndarray, keys: list[int], scored: int, vocabulary: int) -> tuple[list, list, list]:
    """The rules of version 1, position by position."""
    read, positions, labels = ids.tolist(), [], []
    for row, key in enumerate(keys):
        order, action, replacement = np.random.Generator(np.random.Philox(key=key)).random((3, BLOCK - 2))
        chosen = sorted(sorted(range(BLOCK - 2), key=lambda place: order[place])[:scored])
        positions.append([place + 1 for place in chosen])
        labels.append([int(ids[row, place + 1]) for place in chosen])
        for place in chosen:
            if action[place] < 0.8:
                read[row][place + 1] = SPECIAL["mask"]
            elif action[place] < 0.9:
                read[row][place + 1] = int(replacement[place] * vocabulary)
    return read, positions, labels


def test_a_folder_of_an_older_release_keeps_its_masks(prepared, tmp_path, caplog):
    """Its record has format 2, and neither a version of masks nor the number of pieces; masks are those by hand."""
    data, new = prepared
    shutil.copytree(new.folder, tmp_path / "data")
    record = json.loads((tmp_path / "data" / "data.json").read_text())
    younger = ("masking", "pieces", "special_ids")
    record["facts"] = {key: value for key, value in record["facts"].items() if key not in younger}
    record |= {"format": 2, "facts": record["facts"] | {"vocab_size": 200}}
    del record["sha256"], record["data"]["cross_document"]
    (tmp_path / "data" / "data.json").write_text(json.dumps({**record, "sha256": _own_hash(record)}))
    with caplog.at_level("INFO", "pipeline"):
        old = prepare(data, 3, tmp_path / "data")
    assert "prepared by an older release, whose masks this run keeps" in caplog.text
    samples, rows = TextSamples(old.folder, old.facts), np.arange(8)
    for split, keys, found in (
        ("training", [derive(7, "mask", 2, row) for row in rows], samples.train(7, np.full(8, 2), rows)),
        ("evaluation", [derive(7, "mask", "evaluation", row) for row in rows], samples.evaluate(7, rows)),
    ):
        inputs, labels = found
        expected = by_hand(samples.blocks(split, rows), keys, old.facts["scored"], 200)
        assert [inputs["input_ids"].tolist(), inputs["masked_positions"].tolist(), labels.tolist()] == list(expected)
    assert (labels == SPECIAL["sep"]).any(), "these rules predict separators"


def test_the_evaluation_set_has_the_same_masks_in_every_run(prepared, tmp_path):
    """Two runs with other seeds, and one prepared anew: the same batches, so that weights have one loss."""
    data, one = prepared
    two = prepare(data, 4, tmp_path / "data")
    first, second = (
        next(iter(evaluation_batches(there, data, seed, micro_batch=8, rank=0, world=1)))
        for there, seed in ((one, 3), (two, 4))
    )
    assert torch.equal(first.labels, second.labels)
    assert all(torch.equal(first.inputs[key], second.inputs[key]) for key in first.inputs)
    trained = [
        next(train_batches(one, data, seed, batch=8, micro_batch=8, rank=0, world=1, first_step=0)) for seed in (3, 4)
    ]
    assert not torch.equal(trained[0].labels, trained[1].labels), "training follows the seed"


def test_prepared_text_has_no_special_labels(prepared):
    _, there = prepared
    samples, rows = TextSamples(there.folder, there.facts), np.arange(there.facts["training"])
    stored = samples.rows["training"]
    assert (stored == SPECIAL["sep"]).mean() > 0.05 and (stored == SPECIAL["unk"]).any()
    inputs, labels = samples.train(0, np.zeros_like(rows), rows)
    assert labels.min() > 4
    assert inputs["input_ids"].max() < there.facts["pieces"]
    assert there.facts["special_ids"] == list(range(5))


def test_a_text_that_the_tokenizer_does_not_know_is_refused(tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nx\n")
    tokenizer = {"kind": "wordpiece", "path": str(vocabulary)}
    data = config(text_file(tmp_path / "a.txt", some_documents()), tokenizer=tokenizer)
    with pytest.raises(UserError) as caught:
        prepare(data, 0, tmp_path / "data")
    told = "it knows no word of the training text, every token is [UNK]; choose one that fits the text"
    assert str(caught.value) == f"data.tokenizer: {told}"


def test_every_special_token_of_a_tokenizer_is_known(tmp_path):
    """Those with a name, and those that were added as special; others that were added are ordinary."""
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from pipeline.data.tokenizers import Pretrained

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    plain = Tokenizer(models.WordLevel({name: number for number, name in enumerate([*names, "ka"])}, unk_token="[UNK]"))
    plain.add_special_tokens(["<turn>"])
    plain.add_tokens([AddedToken("lo")])
    keys = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), names, strict=True))
    tokenizer = Pretrained(PreTrainedTokenizerFast(tokenizer_object=plain, **keys), "here")
    assert (tokenizer.size, tokenizer.special_ids) == (8, [0, 1, 2, 3, 4, 6])


# --- documents -----------------------------------------------------------------------------------------------------


def test_a_separator_ends_its_document():
    ids = np.array([[2, 7, 3, 8, 9, 3, 3], [2, 3, 7, 7, 7, 7, 3]])
    assert document_numbers(ids, 3).tolist() == [[0, 0, 0, 1, 1, 1, 2], [0, 0, 1, 1, 1, 1, 1]]


def test_documents_go_along_where_they_are_kept_apart(prepared):
    """The numbers are those of the text as it is stored, whatever is masked; all else is as without."""
    data, there = prepared
    apart = data.model_copy(update={"cross_document": False})

    def batches(chosen: TextData):
        yield next(train_batches(there, chosen, 3, batch=8, micro_batch=8, rank=0, world=1, first_step=2))
        yield next(iter(evaluation_batches(there, chosen, 3, micro_batch=8, rank=0, world=1)))

    for plain, with_numbers in zip(batches(data), batches(apart), strict=True):
        numbers = with_numbers.inputs.pop("documents")
        assert numbers.dtype == torch.int32 and numbers.shape == (8, BLOCK)
        assert all(torch.equal(plain.inputs[key], with_numbers.inputs[key]) for key in plain.inputs)
        separators = (plain.inputs["input_ids"] == SPECIAL["sep"]).cumsum(1)
        assert torch.equal(numbers[:, 1:], separators[:, :-1].int()) and numbers.max() > 1
        assert plain.inputs.keys() == with_numbers.inputs.keys()


def test_one_folder_serves_documents_apart_and_not(prepared):
    data, there = prepared
    assert prepare(data.model_copy(update={"cross_document": False}), 3, there.folder) == open_prepared(there.folder)


def test_a_newer_format_is_refused(prepared, tmp_path):
    _, there = prepared
    shutil.copytree(there.folder, tmp_path / "data")
    path: Path = tmp_path / "data" / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 4}))
    with pytest.raises(UserError, match="format 4, this release reads up to 3; install a newer one"):
        open_prepared(tmp_path / "data")

"""Text: documents from every kind of file, a cut by content, packing that loses nothing, tokenizers that are kept."""

import gzip
import json
import lzma
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipeline.config.data import TextData
from pipeline.data import open_prepared, prepare, train_batches
from pipeline.data.census import Census
from pipeline.data.documents import Corpus, open_corpus, read_file
from pipeline.data.packing import id_type
from pipeline.data.sources import HubSplit
from pipeline.data.text import TextSamples
from pipeline.data.tokenizers import load
from pipeline.errors import UserError
from tests.helpers.invented_text import config, some_documents, text_file

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data"
VOCABULARY = REAL / "vocab" / "bert-base-uncased-vocab.txt"
VALID = REAL / "text" / "wikipedia-en" / "valid.txt.xz"
WIKITEXT = REAL / "text" / "wikitext-2" / "valid.txt.xz"
needs_real_text = pytest.mark.skipif(not VALID.exists(), reason="the shared real text is not here")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    data = config(text_file(folder / "text.txt", some_documents()))
    return data, prepare(data, 3, folder / "data")


def first_batch(prepared, data, batch=8):
    return next(train_batches(prepared, data, 3, batch=batch, micro_batch=batch, rank=0, world=1, first_step=0))


# --- sources -------------------------------------------------------------------------------------------------------


def compressed(path: Path, raw: bytes) -> None:
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(raw)
    else:
        path.write_bytes({".xz": lzma.compress, ".gz": gzip.compress}.get(path.suffix, bytes)(raw))


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
@pytest.mark.parametrize("packed", ["", ".xz", ".gz", ".zst"])
def test_every_kind_of_file_gives_the_same_documents(tmp_path, kind, packed):
    documents = ["Ein Satz.\nNoch einer, mit Ümlaut.", "zwei", "drei\nvier"]
    rows = [json.dumps({"id": n, "body": text}) for n, text in enumerate(documents)]
    raw = "\n\n\n".join(documents) + "\n" if kind == "txt" else "\n".join(rows)
    path = tmp_path / f"file.{kind}{packed}"
    compressed(path, raw.encode())
    assert [text.strip() for text in read_file(path, "body")] == documents


@pytest.mark.parametrize("name", ["notes.jsonl.txt", "notes.jsonl.old.txt.gz", "notes.parquet.txt", "NOTES.JSONL.TXT"])
def test_the_end_of_a_name_decides(tmp_path, name):
    """Text about a table is text."""
    compressed(tmp_path / name, b'one\n\n{"text": "two"}\n')
    assert [text.strip() for text in read_file(tmp_path / name, "text")] == ["one", '{"text": "two"}']


def test_parquet_rows_are_documents_and_missing_values_are_none(tmp_path):
    path = tmp_path / "file.parquet"
    pa.parquet.write_table(pa.table({"text": ["one", None, "two\n\nparts"], "other": [1, 2, 3]}), path)
    assert list(read_file(path, "text")) == ["one", "two\n\nparts"]


def test_a_file_without_blank_lines_has_a_document_per_line(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("\n\n one\ntwo\nthree\n\n\n")
    corpus = Corpus("here", lambda: read_file(path, "text"))
    assert [text.strip() for text in corpus] == ["one", "two", "three"]


def test_a_folder_a_glob_and_a_list_name_the_same_files(tmp_path):
    documents = some_documents()
    folder = tmp_path / "texts" / "deeper"
    folder.mkdir(parents=True)
    first = text_file(folder / "a.txt", documents[:150])
    second = text_file(folder / "b.txt", documents[150:])
    (folder / "notes.md").write_text("not data")
    rows = []
    whole = tmp_path / "texts"
    for number, dataset in enumerate([whole, whole / "**" / "*.txt", [str(first), str(second)]]):
        prepared = prepare(config(dataset), 0, tmp_path / f"data{number}")
        rows.append((prepared.folder / "training.bin").read_bytes())
        assert prepared.facts["documents"] == 300
    assert rows[0] == rows[1] == rows[2]


def test_evaluation_files_inside_the_training_folder_are_not_trained_on(tmp_path):
    documents = some_documents()
    (tmp_path / "texts").mkdir()
    text_file(tmp_path / "texts" / "a.txt", documents[:250])
    held_out = text_file(tmp_path / "texts" / "b.txt", documents[250:])
    prepared = prepare(config(tmp_path / "texts", evaluation=str(held_out)), 0, tmp_path / "data")
    assert prepared.facts["documents"] == 250
    assert prepared.facts["evaluation"] == 8


def test_a_table_as_the_hub_gives_it(tmp_path, monkeypatch):
    """`datasets` loads a folder by its name as it loads a data set of the hub, splits and all."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    Path("prose").mkdir()
    for split, rows in (("train", ["one", "two"]), ("validation", ["three"])):
        pa.parquet.write_table(pa.table({"body": rows, "id": list(range(len(rows)))}), f"prose/{split}.parquet")
    training, validation = HubSplit("prose", None, "train"), HubSplit("prose", None, "validation")
    assert list(open_corpus(training, "body")) == ["one", "two"]
    assert list(open_corpus(validation, "body")) == ["three"]
    with pytest.raises(UserError, match=r"prose, split train: no column 'text'; it has body, id; set data\.column"):
        open_corpus(training, "text")


# --- the cut -------------------------------------------------------------------------------------------------------


def cut(documents: list[str], characters: int) -> tuple[list[str], list[str]]:
    corpus = Corpus("here", lambda: documents)
    held_out = Census.of(corpus, characters).held_out
    return [document for document in documents if document not in held_out], held_out


def test_the_cut_is_a_partition_of_about_the_size_asked_for():
    documents = some_documents()
    rest, held_out = cut(documents, 5000)
    assert sorted(rest + held_out) == sorted(documents)
    assert 5000 <= sum(map(len, held_out)) < 5000 + max(map(len, documents))


def test_the_cut_is_a_tenth_at_most():
    documents = some_documents()
    total = sum(map(len, documents))
    _, held_out = cut(documents, total)
    assert 0.09 * total < sum(map(len, held_out)) <= 0.1 * total


def test_the_cut_goes_by_content_not_by_order_and_keeps_copies_together():
    documents = some_documents()
    _, before = cut(documents, 5000)
    shuffled = documents[::-1]
    assert cut(shuffled, 5000)[1] == before
    rest, held_out = cut(documents + documents[:50], 5000)
    assert not set(rest) & set(held_out)


def test_what_the_evaluation_does_not_need_is_trained_on(small):
    """Of the text set aside, only the documents that fill the 8 evaluation blocks are kept from training."""
    _, prepared = small
    pieces = load(prepared.tokenizer)
    rows = np.array(TextSamples(prepared.folder, prepared.facts).rows["training"])
    tokens = sum(len(pieces.encode([text])[0]) + 1 for text in some_documents()) - 1
    unseen = tokens - rows.size
    longest = max(len(pieces.encode([text])[0]) for text in some_documents())
    assert 8 * 30 <= unseen < 8 * 30 + longest + 30 + 8


# --- packing -------------------------------------------------------------------------------------------------------


def test_packing_has_no_padding_and_loses_only_the_tail(tmp_path):
    documents, held_out = some_documents(), some_documents(40, seed=1)
    data = config(text_file(tmp_path / "a.txt", documents), evaluation=str(text_file(tmp_path / "b.txt", held_out)))
    prepared = prepare(data, 0, tmp_path / "data")
    pieces, special = load(prepared.tokenizer), prepared.facts["special"]
    for split, texts in (("training", documents), ("evaluation", held_out)):
        stream = []
        for text in texts:
            stream += [special["sep"]] * bool(stream) + pieces.encode([text])[0]
        rows = np.array(TextSamples(prepared.folder, prepared.facts).rows[split])
        kept = rows.ravel().tolist()
        assert kept == stream[: len(kept)]
        assert split == "evaluation" or len(stream) - len(kept) < data.block - 2
        assert special["pad"] not in rows and special["cls"] not in rows and special["mask"] not in rows
    assert prepared.facts["training"] == len(TextSamples(prepared.folder, prepared.facts).rows["training"])


def test_preparing_twice_gives_the_same_bytes(small, tmp_path):
    data, prepared = small
    again = prepare(data, 3, tmp_path / "data")
    for file in ("training.bin", "evaluation.bin", "tokenizer/tokenizer.model", "data.json"):
        assert (again.folder / file).read_bytes() == (prepared.folder / file).read_bytes()


def test_ids_take_two_bytes_where_they_fit(tmp_path):
    assert [id_type(size).itemsize for size in (2**16, 2**16 + 1)] == [2, 4]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(70_000))]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    documents = [" ".join(f"word{n}" for n in range(start, start + 100)) for start in range(0, 70_000, 100)]
    tokenizer = {"kind": "wordpiece", "path": str(tmp_path / "vocab.txt")}
    data = config(text_file(tmp_path / "a.txt", documents), tokenizer=tokenizer)
    prepared = prepare(data, 0, tmp_path / "data")
    rows = TextSamples(prepared.folder, prepared.facts).rows["training"]
    assert rows.dtype == np.uint32 and rows.max() > 2**16
    assert first_batch(prepared, data, batch=64).labels.max() > 2**16


# --- tokenizers ----------------------------------------------------------------------------------------------------


def test_special_pieces_have_ids_that_text_cannot_produce(small):
    _, prepared = small
    pieces, special = load(prepared.tokenizer), prepared.facts["special"]
    assert special == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert pieces.size == 200
    ids = pieces.encode(["kalo [MASK] [SEP] [CLS] [PAD] mimi"])[0]
    assert not {special[name] for name in ("pad", "cls", "sep", "mask")} & set(ids)


def small_vocabulary(path: Path) -> Path:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), "cafe"]
    path.write_text("\n".join(pieces) + "\n")
    return path


def test_wordpiece_is_lower_cased_without_accents_and_saved_whole(tmp_path):
    vocabulary = small_vocabulary(tmp_path / "vocab.txt")
    tokenizer = {"kind": "wordpiece", "path": str(vocabulary)}
    text = text_file(tmp_path / "a.txt", some_documents())
    prepared = prepare(config(text, tokenizer=tokenizer), 0, tmp_path / "data")
    vocabulary.unlink()
    pieces = load(prepared.tokenizer)
    assert pieces.encode(["CAFÉ ab [MASK]"])[0][:3] == [57, 5, 32]
    assert prepared.facts["special"]["mask"] == 4 and 4 not in pieces.encode(["x [MASK] y"])[0]
    assert prepared.facts["pieces"] == 58


def test_a_tokenizer_of_transformers_gives_the_same_rows(tmp_path):
    tokenizer = {"kind": "wordpiece", "path": str(small_vocabulary(tmp_path / "vocab.txt"))}
    text = text_file(tmp_path / "a.txt", some_documents())
    one = prepare(config(text, tokenizer=tokenizer), 0, tmp_path / "one")
    loaded = {"kind": "huggingface", "path": str(one.tokenizer)}
    two = prepare(config(text, tokenizer=loaded), 0, tmp_path / "two")
    assert (one.folder / "training.bin").read_bytes() == (two.folder / "training.bin").read_bytes()
    assert one.facts == two.facts


def test_a_tokenizer_that_cannot_separate_documents_is_refused(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"kalo": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]").save_pretrained(tmp_path / "plain")
    tokenizer = {"kind": "huggingface", "path": str(tmp_path / "plain")}
    data = config(text_file(tmp_path / "a.txt", some_documents()), tokenizer=tokenizer)
    with pytest.raises(UserError) as caught:
        prepare(data, 0, tmp_path / "data")
    message = "no sep and no eos token in this tokenizer, and documents are separated by one; add it to the tokenizer"
    assert str(caught.value) == f"{tmp_path / 'plain'}: {message}"


# --- the folder ----------------------------------------------------------------------------------------------------


def test_prepare_again_returns_at_once_and_needs_no_source(tmp_path, caplog):
    source = text_file(tmp_path / "a.txt", some_documents())
    data = config(source)
    first = prepare(data, 0, tmp_path / "data")
    source.unlink()
    caplog.set_level("INFO", logger="pipeline")
    again = prepare(data.model_copy(update={"workers": 3}), 0, tmp_path / "data")
    assert again == first == open_prepared(tmp_path / "data") and not caplog.messages
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_prepare_logs_what_it_found_and_prints_nothing(tmp_path, caplog, capsys):
    caplog.set_level("INFO", logger="pipeline")
    prepare(config(text_file(tmp_path / "a.txt", some_documents())), 0, tmp_path / "data")
    said = caplog.messages
    assert capsys.readouterr().out == ""
    assert [line.split(":")[0] for line in said] == ["text", "tokenizer", "packed"]
    assert "300 documents" in said[0] and "200 pieces" in said[1] and "8 evaluation blocks" in said[2]


# --- real text -----------------------------------------------------------------------------------------------------


@needs_real_text
def test_wikipedia_with_the_wordpiece_vocabulary(tmp_path):
    """The folder's README counts 644 documents; 367,931 tokens, by the tokenizer that gives the README's 2,603,010
    tokens for the first training shard."""
    tokenizer = {"kind": "wordpiece", "path": str(VOCABULARY)}
    data = TextData(kind="text", dataset=str(VALID), evaluation=str(WIKITEXT), tokenizer=tokenizer)
    prepared = prepare(data, 0, tmp_path / "data")
    facts = prepared.facts
    assert facts["documents"] == 644 and (facts["pieces"], facts["vocab_size"]) == (30522, 30528)
    assert facts["training"] == (367_931 + 643) // 126  # a [SEP] between every two documents
    assert facts["special"] == {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
    rows = TextSamples(prepared.folder, facts).rows["training"]
    assert 630 <= int((rows == 102).sum()) <= 643  # the tail of up to 125 tokens is not stored
    batch = first_batch(prepared, data)
    assert batch.inputs["input_ids"].shape == (8, 128) and batch.labels.shape == (8, 19)

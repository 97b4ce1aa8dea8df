"""Tokenising by several processes: the same file whatever their number, and after a kill the same as without one."""

import json
import logging
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import census, packing, prepare, text_building
from pipeline.data.census import Census
from pipeline.data.documents import Corpus, fingerprint
from pipeline.errors import UserError
from tests.helpers.invented_text import config, some_documents, text_file
from tests.helpers.processes import alive, in_a_child, workers_of
from tests.helpers.waiting import wait_for

FILES = ("training.bin", "evaluation.bin", "tokenizer/tokenizer.model", "data.json")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(packing, "PART_CHARACTERS", 5000)


@pytest.fixture
def source(tmp_path):
    return text_file(tmp_path / "text.txt", some_documents())


@pytest.fixture
def plain(source, tmp_path):
    """What a call makes that nothing interrupts."""
    return prepare(config(source), 0, tmp_path / "plain", processes=1).folder


def same(one: Path, two: Path) -> bool:
    return all((one / name).read_bytes() == (two / name).read_bytes() for name in FILES)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_result_does_not_depend_on_the_processes(source, plain, tmp_path, processes):
    assert same(prepare(config(source), 0, tmp_path / "data", processes).folder, plain)
    assert sorted(path.name for path in plain.iterdir()) == ["data.json", "evaluation.bin", "tokenizer", "training.bin"]


@pytest.mark.parametrize("characters", [1, 700, 10**9])
def test_the_result_does_not_depend_on_the_parts(source, plain, tmp_path, monkeypatch, characters):
    monkeypatch.setattr(packing, "PART_CHARACTERS", characters)
    assert same(prepare(config(source), 0, tmp_path / "data", processes=1).folder, plain)


def test_documents_without_tokens_leave_no_separator(tmp_path):
    class Letters:
        size, special = 100, {"sep": 9}

        def encode(self, documents):
            return [[ord(letter) - 96 for letter in text if letter.isalpha()] for text in documents]

    reading = packing.Reading(Corpus("here", lambda: ["?", "ab", "!", "c", "."]), set(), "")
    for size in (1, 3, 100):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packing, "PART_CHARACTERS", size)
            reading = packing.Reading(reading.corpus, set(), "")
            with packing.IdFile(tmp_path / f"{size}.bin", tmp_path / f"{size}.jsonl", np.dtype(np.uint16), 9) as file:
                for part, ids in packing.tokenised(reading.parts(), Letters(), processes=1):
                    file.append(part, ids)
        assert np.fromfile(tmp_path / f"{size}.bin", np.uint16).tolist() == [1, 2, 9, 3]


# --- going on ------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing behind it runs but what closes files."""


def interrupted(monkeypatch, data, folder: Path, parts: int, **options) -> None:
    """Prepare until `parts` parts are packed."""
    append, done = packing.IdFile.append, []

    def counting(self, part, ids):
        if len(done) == parts:
            raise Killed
        done.append(part)
        append(self, part, ids)

    with monkeypatch.context() as patch:
        patch.setattr(packing.IdFile, "append", counting)
        with pytest.raises(Killed):
            prepare(data, 0, folder, **options)


@pytest.fixture
def tokenised(monkeypatch):
    """The parts' sizes, in documents, as they are tokenised."""
    sizes, joined = [], packing.joined
    monkeypatch.setattr(packing, "joined", lambda texts, pieces: sizes.append(len(texts)) or joined(texts, pieces))
    return sizes


def goes_on(source, folder: Path, caplog, **changes) -> str:
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="pipeline"):
        prepare(config(source, **changes), 0, folder, processes=1)
    return caplog.text


@pytest.mark.parametrize("processes", [1, 2])
def test_packed_parts_are_kept(source, plain, tmp_path, monkeypatch, caplog, tokenised, processes):
    interrupted(monkeypatch, config(source), tmp_path / "data", parts=7, processes=processes)
    assert not (tmp_path / "data").exists()
    tokenised.clear()
    assert "text: 7 parts, " in goes_on(source, tmp_path / "data", caplog)
    total = Census.of(Corpus("", lambda: some_documents())).tally.characters // 5000
    assert len(tokenised) <= total + 1 - 7
    assert same(tmp_path / "data", plain)
    assert not (tmp_path / "data.draft").exists() and not (tmp_path / "data" / text_building.UNFINISHED).exists()


def torn(draft: Path) -> None:
    with (draft / "training.bin").open("ab") as file:
        file.write(b"half a part")


def torn_journal(draft: Path) -> None:
    journal = draft / text_building.UNFINISHED / "parts.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])


def flipped(draft: Path) -> None:
    ids = draft / "training.bin"
    content = bytearray(ids.read_bytes())
    content[-1] ^= 1
    ids.write_bytes(content)


def cut_off(draft: Path) -> None:
    os.truncate(draft / "training.bin", (draft / "training.bin").stat().st_size - 2)


@pytest.mark.parametrize(("damage", "kept"), [(torn, 7), (torn_journal, 6), (flipped, 6), (cut_off, 6)])
def test_a_part_that_is_not_whole_is_done_again(source, plain, tmp_path, monkeypatch, caplog, damage, kept):
    interrupted(monkeypatch, config(source), tmp_path / "data", parts=7, processes=1)
    damage(tmp_path / "data.draft")
    assert f"text: {kept} parts, " in goes_on(source, tmp_path / "data", caplog)
    assert same(tmp_path / "data", plain)


def test_other_settings_start_over(source, plain, tmp_path, monkeypatch, caplog):
    interrupted(monkeypatch, config(source, block=64), tmp_path / "data", parts=7, processes=1)
    assert "kept" not in goes_on(source, tmp_path / "data", caplog)
    assert same(tmp_path / "data", plain)


def test_keys_that_are_read_later_do_not(source, plain, tmp_path, monkeypatch, caplog):
    interrupted(monkeypatch, config(source, workers=2), tmp_path / "data", parts=7, processes=1)
    assert "text: 7 parts, " in goes_on(source, tmp_path / "data", caplog)
    assert same(tmp_path / "data", plain)


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_text_that_was_changed_starts_over(source, tmp_path, monkeypatch, caplog, place):
    interrupted(monkeypatch, config(source), tmp_path / "data", parts=7, processes=1)
    more = some_documents(1, seed=5)
    text_file(source, more + some_documents() if place == "first" else some_documents() + more)
    assert "is not the text any more that this began with, starting over" in goes_on(source, tmp_path / "data", caplog)
    fresh = prepare(config(source), 0, tmp_path / "fresh", processes=1).folder
    assert same(tmp_path / "data", fresh)


def test_an_evaluation_text_that_was_changed_starts_over(source, tmp_path, monkeypatch, caplog):
    held_out = text_file(tmp_path / "held-out.txt", some_documents(40, seed=1))
    interrupted(monkeypatch, config(source, evaluation=str(held_out)), tmp_path / "data", parts=7, processes=1)
    text_file(held_out, some_documents(40, seed=2))
    assert "kept" not in goes_on(source, tmp_path / "data", caplog, evaluation=str(held_out))
    fresh = prepare(config(source, evaluation=str(held_out)), 0, tmp_path / "fresh", processes=1).folder
    assert same(tmp_path / "data", fresh)


def test_a_vocabulary_that_was_changed_starts_over(source, tmp_path, monkeypatch, caplog):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ka", *(f"##{two}" for two in ("lo", "mi", "ka"))]
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(pieces) + "\n")
    tokenizer = {"kind": "wordpiece", "path": str(vocabulary)}
    interrupted(monkeypatch, config(source, tokenizer=tokenizer), tmp_path / "data", parts=7, processes=1)
    vocabulary.write_text("\n".join([*pieces, "##sol"]) + "\n")
    assert "kept" not in goes_on(source, tmp_path / "data", caplog, tokenizer=tokenizer)
    assert json.loads((tmp_path / "data" / "data.json").read_text())["facts"]["pieces"] == len(pieces) + 1


def test_a_text_that_changes_while_it_is_read_is_refused(source, tmp_path, monkeypatch):
    create = text_building.tokenizers.create

    def meanwhile(*arguments):
        text_file(source, some_documents()[::-1])
        return create(*arguments)

    monkeypatch.setattr(text_building.tokenizers, "create", meanwhile)
    with pytest.raises(UserError) as caught:
        prepare(config(source), 0, tmp_path / "data", processes=1)
    assert str(caught.value) == f"{source}: changed while it was read; leave it as it is and prepare again"


def test_a_kill_leaves_what_is_packed_and_no_process(source, plain, tmp_path, monkeypatch, caplog):
    append, seen = packing.IdFile.append, tmp_path / "pool"

    def dying(self, part, ids):
        append(self, part, ids)
        if self.count > 2000:
            seen.write_text(" ".join(map(str, workers_of(os.getpid()))))
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(packing.IdFile, "append", dying)
        ended = in_a_child(lambda: bool(prepare(config(source), 0, tmp_path / "data", 2)), tmp_path / "said")
    assert ended.code == -signal.SIGKILL
    pool = [int(number) for number in seen.read_text().split()]
    assert len(pool) == 2
    wait_for(lambda: not any(map(alive, pool)), 10)
    assert " are kept from before" in goes_on(source, tmp_path / "data", caplog)
    assert same(tmp_path / "data", plain)


def test_a_killed_process_of_the_pool_is_named_and_its_parts_are_kept(source, plain, tmp_path, monkeypatch, caplog):
    joined, parent, line = packing.joined, os.getpid(), some_documents()[250].splitlines()[0]

    def dying(documents, tokenizer):
        if os.getpid() != parent and any(line in text for text in documents):
            os.kill(os.getpid(), signal.SIGKILL)
        return joined(documents, tokenizer)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "joined", dying)
        with pytest.raises(UserError) as caught:
            prepare(config(source), 0, tmp_path / "data", processes=2)
    assert str(caught.value).startswith("a process that tokenised was killed (out of memory?); run the command again")
    assert " are kept from before" in goes_on(source, tmp_path / "data", caplog)
    assert same(tmp_path / "data", plain)


# --- the census ----------------------------------------------------------------------------------------------------


def by_hand(documents: list[str], characters: int) -> list[str]:
    """All documents sorted by fingerprint, those taken that fit."""
    limit, selected, total = int(0.1 * sum(map(len, documents))), [], 0
    for text in sorted(set(documents), key=fingerprint):
        size = len(text) * documents.count(text)
        if total < characters and total + size <= limit:
            selected += [text] * documents.count(text)
            total += size
    return selected


@pytest.mark.parametrize("seed", range(30))
def test_what_is_held_out_does_not_depend_on_what_is_remembered(seed, monkeypatch):
    """Against a selection from all documents: short and long ones, copies, and so many that most are forgotten."""
    draw = random.Random(seed)
    sizes = [draw.choice([1, 5, 30, draw.randint(1, 2000)]) for _ in range(draw.randint(1, 400))]
    documents = ["".join(draw.choices("abcdefgh", k=size)) for size in sizes]
    documents += draw.choices(documents, k=draw.randint(0, 100))
    draw.shuffle(documents)
    forgotten = []
    let_go = census.LowestDocuments._let_go
    monkeypatch.setattr(census.LowestDocuments, "_let_go", lambda self: forgotten.append(1) or let_go(self))
    for characters in (1, 40, 600, 10**6):
        found = Census.of(Corpus("here", lambda: documents), characters)
        assert found.held_out == by_hand(documents, characters)
        assert found.tally.documents == len(documents) and found.tally.characters == sum(map(len, documents))
    assert forgotten or len(documents) < 50


def test_what_is_learned_from_is_a_bounded_share_in_order(monkeypatch):
    monkeypatch.setattr(census, "LEARN_FROM", 3000)
    documents = some_documents()
    total = sum(map(len, documents))
    held_out = some_documents()[:5]
    chosen = [text for text in documents if (fingerprint(text) & 0xFFFFFFFF) < 3000 / total * 2**32]
    learning = census.LearningText()
    read = 0
    for text in documents:
        read += len(text)
        learning.add(text, fingerprint(text), read)
        assert sum(map(len, learning._texts)) < 2 * 3000
    excluded = {fingerprint(text) for text in held_out}
    assert list(learning.documents(total, excluded)) == [text for text in chosen if text not in held_out]
    assert 1000 < sum(map(len, chosen)) < 6000

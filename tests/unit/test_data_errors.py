"""What a user can get wrong with data: one line that tells the way out, and nothing half-written."""

import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipeline.config.data import ImageData, TextData
from pipeline.data import evaluation_batches, open_prepared, prepare, train_batches
from pipeline.data.tokenizers import Pretrained, SentencePiece
from pipeline.errors import UserError
from tests.helpers.invented_text import config, some_documents, text_file

ROOT = Path(__file__).resolve().parents[2]


def text(dataset: object, **changes) -> TextData:
    return config(dataset, **{"block": 16, "evaluation_blocks": 4, **changes})


def images(dataset: object, **changes) -> ImageData:
    return ImageData(kind="images", dataset=dataset, **changes)


def png(folder: Path, name: str, shade: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((8, 8), shade, dtype=np.uint8)).save(folder / name)
    return folder / name


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder of good and bad files, in which the test stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    good = text_file(Path("good.txt"), some_documents()).read_text()
    text_file(Path("short.txt"), some_documents(12))
    Path("word.txt").write_text("kalo\n")
    Path("blank.txt").write_text("\n \n\n")
    Path("notes.md").write_text(good)
    Path("latin.txt").write_bytes("Käse\n".encode("latin-1"))
    Path("cut.txt.xz").write_bytes(lzma.compress(good.encode())[:-40])
    Path("wrong.txt.xz").write_text("this is no xz file")
    Path("cut.txt.gz").write_bytes(gzip.compress(good.encode())[:-20])
    with pa.CompressedOutputStream("whole.zst", "zstd") as file:
        file.write(good.encode())
    Path("cut.txt.zst").write_bytes(Path("whole.zst").read_bytes()[:-10])
    Path("bad.parquet").write_bytes(b"PAR1 and nothing else")
    Path("broken.jsonl").write_text('{"text": "one"}\n{"text": \n')
    Path("array.jsonl").write_text('["one"]\n')
    Path("other.jsonl").write_text('{"body": "one"}\n')
    Path("half.jsonl").write_text('{"text": "one"}\n{"text": "ab\\ud800c"}\n')
    Path("digits.jsonl").write_text('{"text": ' + "9" * 5000 + "}\n")
    Path("deep.jsonl").write_text('{"a":' * 100_000 + "1" + "}" * 100_000 + "\n")
    Path("specials.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    Path("number.jsonl").write_text('{"text": 3}\n')
    pa.parquet.write_table(pa.table({"body": ["one"], "id": [1]}), "other.parquet")
    Path("empty").mkdir()
    Path("vocab.txt").write_text("[PAD]\n[UNK]\nkalo\n")
    for shade in range(20):
        png(Path("photos") / ("cat" if shade % 2 else "dog"), f"{shade}.png", shade)
        png(Path("lonely/cat"), f"{shade}.png", shade)
    png(Path("few/cat"), "1.png", 1)
    png(Path("few/dog"), "2.png", 2)
    png(Path("strange/emu"), "1.png", 1)
    encoded = [Path(f"lonely/cat/{shade}.png").read_bytes() for shade in range(20)]
    for name, columns in {
        "unlabelled": {"image": encoded, "id": list(range(20))},
        "unpictured": {"photo": encoded, "label": [0, 1] * 10},
        "floats": {"image": encoded, "label": [0.5, 1.5] * 10},
        "gap": {"image": encoded, "label": [0, None] * 10},
        "numbers": {"image": list(range(20)), "label": [0, 1] * 10},
        "torn": {"image": [data[:40] for data in encoded], "label": [0, 1] * 10},
    }.items():
        pa.parquet.write_table(pa.table(columns), f"{name}.parquet")
    kinds = datasets.Features({"image": datasets.Value("binary"), "label": datasets.ClassLabel(names=["a", "b"])})
    datasets.Dataset.from_dict({"image": encoded, "label": [0, -1] * 10}, features=kinds).to_parquet("minus.parquet")
    pa.parquet.write_table(pa.table({"image": encoded, "label": [0, 1] * 10}), "rotten.parquet", compression="zstd")
    whole = bytearray(Path("rotten.parquet").read_bytes())
    whole[30:200] = bytes(170)
    Path("rotten.parquet").write_bytes(bytes(whole))
    return tmp_path


TEXT = {
    "missing": (text("gone.txt"), "gone.txt: no such file or folder; check data.dataset"),
    "missing in a list": (text(["good.txt", "gone.txt"]), "gone.txt: no such file or folder; check data.dataset"),
    "missing glob": (text("gone/*.txt"), "gone/*.txt: no such file or folder; check data.dataset"),
    "empty list": (text([]), "data.dataset: an empty list; name at least one file, or say embedded"),
    "unknown extension": (text("notes.md"), "notes.md: unknown kind of file; known: .txt, .txt.xz,"),
    "empty folder": (text("empty"), "empty: no file of a known kind in it; known: .txt,"),
    "neither path nor name": (text("no such file"), "no such file: no such file or folder, and no name of"),
    "not on the hub": (text("nobody/nothing"), "nobody/nothing, split train: neither a local path nor a hub data set"),
    "subset of a file": (text("good.txt", subset="en"), "data.subset: 'en' goes with a hub data set, and good.txt"),
    "missing evaluation": (text("good.txt", evaluation="gone"), "gone: no such file or folder; check data.evaluation"),
    "same files": (text("good.txt", evaluation="./good.txt"), "good.txt: data.dataset and data.evaluation name the"),
    "no text": (text("blank.txt"), "blank.txt: no text in it; check data.dataset and data.column"),
    "not utf-8": (text("latin.txt"), "latin.txt: cannot read it ('utf-8' codec can't decode"),
    "truncated xz": (text("cut.txt.xz"), "cut.txt.xz: cannot read it (Compressed file ended before"),
    "no xz": (text("wrong.txt.xz"), "wrong.txt.xz: cannot read it (Input format not supported"),
    "truncated gz": (text("cut.txt.gz"), "cut.txt.gz: cannot read it (Compressed file ended before"),
    "truncated zst": (text("cut.txt.zst"), "cut.txt.zst: cannot read it (Truncated compressed stream)"),
    "corrupt parquet": (text("bad.parquet"), "bad.parquet: cannot read it (Parquet magic bytes not found"),
    "broken json": (text("broken.jsonl"), "broken.jsonl, line 2: not valid JSON (Expecting value)"),
    "no object": (text("array.jsonl"), "array.jsonl, line 1: no column 'text'; it has none; set data.column"),
    "jsonl column": (text("other.jsonl"), "other.jsonl, line 1: no column 'text'; it has body; set data.column"),
    "parquet column": (text("other.parquet"), "other.parquet: no column 'text'; it has body, id; set data.column"),
    "no string": (text("number.jsonl"), "number.jsonl, line 1: column 'text' contains int, not text; set data.column"),
    "half a surrogate pair": (
        text("half.jsonl"),
        "half.jsonl, line 2: character 3 of the text is half a surrogate pair ('\\ud800'); repair or remove it",
    ),
    "a long number": (text("digits.jsonl"), "digits.jsonl, line 1: not valid JSON (Exceeds the limit (4300 digits)"),
    "deep json": (text("deep.jsonl"), "deep.jsonl, line 1: not valid JSON (maximum recursion depth exceeded"),
    "vocabulary of specials": (
        text("good.txt", tokenizer={"kind": "wordpiece", "path": "specials.txt"}),
        "specials.txt: no piece besides [PAD], [UNK], [CLS], [SEP], [MASK] in it: every word would be [UNK]",
    ),
    "vocabulary too large": (
        text("good.txt", tokenizer={"vocab_size": 9999}),
        "data.tokenizer.vocab_size 9999 does not fit the text",
    ),
    "vocabulary missing": (
        text("good.txt", tokenizer={"kind": "wordpiece", "path": "gone.txt"}),
        "gone.txt: cannot read the vocabulary",
    ),
    "vocabulary without specials": (
        text("good.txt", tokenizer={"kind": "wordpiece", "path": "vocab.txt"}),
        "vocab.txt: no [CLS], [SEP], [MASK] in it; a BERT vocab.txt has one piece a line, with these",
    ),
    "tokenizer folder missing": (
        text("good.txt", tokenizer={"kind": "huggingface", "path": "./gone"}),
        "./gone: no such tokenizer folder",
    ),
    "tokenizer folder empty": (
        text("good.txt", tokenizer={"kind": "huggingface", "path": "empty"}),
        "empty: no tokenizer could be loaded",
    ),
    "too little to evaluate": (text("good.txt", evaluation_blocks=1000), "good.txt, held out: the text fills"),
    "no block to evaluate": (
        text("good.txt", evaluation="word.txt"),
        "word.txt: the text fills 0 blocks of 16 tokens, and data.evaluation_",
    ),
    "no block to train": (
        text("short.txt", evaluation="good.txt", block=4096, evaluation_blocks=1),
        "short.txt: the text fills 0 blocks of 4096 tokens; lower data.block or give more text",
    ),
}

IMAGES = {
    "missing": (images("gone/photos.parquet"), "gone/photos.parquet: no such file or folder; check data.dataset"),
    "not on the hub": (images("nobody/nothing"), "nobody/nothing, split train: neither a local path nor a hub data"),
    "unknown extension": (images("good.txt"), "good.txt: unknown kind of file; known: .parquet, .png, .jpg, .jpeg"),
    "empty folder": (images("empty"), "empty: no file of a known kind in it; known: .parquet, .png, .jpg, .jpeg"),
    "subset of a file": (images("photos", subset="a"), "data.subset: 'a' goes with a hub data set, and photos is none"),
    "missing evaluation": (images("photos", evaluation="gone"), "gone: no such file or folder; check data.evaluation"),
    "corrupt parquet": (images("bad.parquet"), "bad.parquet: cannot read it (Parquet magic bytes not found"),
    "rotten parquet": (images("rotten.parquet"), "rotten.parquet: cannot read the images ("),
    "two kinds": (images(["photos", "torn.parquet"]), "torn.parquet: parquet files and image files together"),
    "one class": (images("lonely"), "lonely: images of 1 class; a classifier needs 2 or more; see data.label"),
    "no label": (images("unlabelled.parquet"), "unlabelled.parquet: no column 'label'; it has image, id; set"),
    "no image": (images("unpictured.parquet"), "unpictured.parquet: no column 'image'; it has photo, label;"),
    "label no class": (images("floats.parquet"), "floats.parquet: column 'label' contains 0.5, no class"),
    "label missing in a row": (images("gap.parquet"), "gap.parquet: column 'label' contains None, no class"),
    "row without a class": (images("minus.parquet"), "minus.parquet: column 'label' has rows without a class (-1)"),
    "no pictures": (
        images("numbers.parquet"),
        "numbers.parquet: column 'image' holds int64, no encoded images; set data.column",
    ),
    "damaged picture": (images("torn.parquet"), "training image"),
    "too few": (images("few"), "2 images are too few to cut an evaluation set from; give data.evaluation"),
    "new class": (
        images("photos", evaluation="strange/*"),
        "strange/*: class 'emu' is not among the training images' 2",
    ),
}


def refused(data, folder: Path) -> str:
    """The error of preparing `data`, which must be one line and leave nothing behind."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError) as caught:
        prepare(data, 0, folder / "run" / "data")
    assert sorted(path for path in folder.rglob("*") if path != folder / "run") == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("case", TEXT)
def test_bad_text(files, case):
    data, message = TEXT[case]
    assert refused(data, files).startswith(message)


@pytest.mark.parametrize("case", IMAGES)
def test_bad_images(files, case):
    data, message = IMAGES[case]
    assert refused(data, files).startswith(message)


def test_the_way_out_of_too_little_text_is_a_way_out(files):
    message = refused(text("good.txt", evaluation_blocks=1000), files)
    blocks = int(message.split("lower data.evaluation_blocks to ")[1].split()[0])
    prepared = prepare(text("good.txt", evaluation_blocks=blocks), 0, files / "data")
    assert prepared.facts["evaluation"] == blocks


@pytest.mark.parametrize(
    ("module", "data", "message"),
    [
        ("sklearn.datasets", images("embedded"), "needs scikit-learn for its images; pip install -e '.[quickstart]'"),
        ("kornia.enhance", images("photos", augment="deit"), "'deit' needs kornia; pip install -e '.[vision]'"),
    ],
)
def test_a_missing_package_is_named(files, monkeypatch, module, data, message):
    monkeypatch.setitem(sys.modules, module, None)  # what an import of a package that is not there meets
    assert message in refused(data, files)


def test_an_augmentation_can_lack_its_package_later(files, monkeypatch):
    prepared = prepare(images("photos"), 0, files / "data")
    monkeypatch.setitem(sys.modules, "kornia.enhance", None)
    with pytest.raises(UserError, match=r"needs kornia; pip install -e '.\[vision\]'"):
        train_batches(
            prepared, images("photos", augment="deit"), 0, batch=1, micro_batch=1, rank=0, world=1, first_step=0
        )


# --- the prepared folder -------------------------------------------------------------------------------------------


def test_another_config_is_refused_by_name(files):
    there = prepare(text("good.txt"), 0, files / "data")
    out = "; remove the folder to prepare again, or give the run another name"
    with pytest.raises(UserError) as caught:
        prepare(text("good.txt", block=32), 0, files / "data")
    assert str(caught.value) == f"{files / 'data'}: prepared with block 16, and the config has 32{out}"
    assert prepare(text("good.txt"), 1, files / "data") == there  # nothing that is stored follows from the seed
    with pytest.raises(UserError, match="prepared with block 16, and the config has None"):
        prepare(images("photos"), 0, files / "data")


def test_a_folder_of_something_else_is_left_alone(files):
    with pytest.raises(UserError, match="photos: not empty and not prepared data; remove it or choose another folder"):
        prepare(text("good.txt"), 0, files / "photos")
    assert len(list((files / "photos").rglob("*.png"))) == 20


def test_an_empty_folder_is_used(files):
    assert prepare(text("good.txt"), 0, files / "empty") == open_prepared(files / "empty")


def test_opening_what_was_not_prepared(files):
    with pytest.raises(UserError, match=r"empty: no prepared data here; prepare them first \(lemon prepare CONFIG\)"):
        open_prepared(files / "empty")


def test_a_tokenizer_folder_runs_no_code(files, monkeypatch):
    """`auto_map` names a class in a Python file of the folder; whoever answers yes to all questions trusts nobody."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder, mark = Path("tokenizer"), Path("mark").resolve()
    folder.mkdir()
    auto_map = {"AutoTokenizer": ["code.Theirs", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map, "tokenizer_class": "Theirs"}))
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w')\nclass Theirs:\n    pass\n")
    with pytest.raises(UserError, match="tokenizer: no tokenizer could be loaded from it"):
        Pretrained.named("./tokenizer")
    assert not mark.exists()


@pytest.mark.parametrize("content", ["{}", '{"facts": {}}'])
def test_a_foreign_data_json(files, content):
    (files / "empty" / "data.json").write_text(content)
    with pytest.raises(UserError, match=r"data.json: not what prepare writes; remove the folder and prepare again"):
        open_prepared(files / "empty")


def test_a_damaged_folder_is_noticed(files):
    prepared = prepare(text("good.txt"), 0, files / "text")
    residual = prepared.folder / "training.bin"
    whole = residual.stat().st_size
    os.truncate(residual, whole - 2)
    with pytest.raises(UserError, match=rf"training.bin: {whole - 2:,} bytes, not {whole:,}; the file is damaged"):
        open_prepared(prepared.folder)
    prepared = prepare(images("photos"), 0, files / "images")
    (stored,) = (prepared.folder / "evaluation").glob("*.arrow")
    os.truncate(stored, 100)
    with pytest.raises(UserError, match=r"evaluation: cannot read it \(.*; remove its folder and prepare again"):
        open_prepared(prepared.folder)


def test_a_killed_prepare_leaves_nothing_that_counts(files):
    data = text("good.txt")
    script = (
        "import logging, os, signal, sys\n"
        "from pathlib import Path\n"
        "from pipeline.config.data import TextData\n"
        "from pipeline.data import prepare\n"
        "def die(record):\n"
        "    if record.getMessage().startswith('packed'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "logging.root.handlers[0].emit = die\n"
        "prepare(TextData.model_validate_json(sys.argv[1]), 0, Path('data'))\n"
    )
    command = [sys.executable, "-c", script, data.model_dump_json()]
    ended = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == -signal.SIGKILL
    assert not (files / "data").exists() and (files / "data.draft" / "training.bin").exists()
    prepared = prepare(data, 0, files / "data")
    assert json.loads((files / "data" / "data.json").read_text())["facts"] == prepared.facts
    assert not (files / "data.draft").exists()


def test_a_batch_that_does_not_split_is_refused(files):
    prepared = prepare(text("good.txt"), 0, files / "data")
    with pytest.raises(UserError) as caught:
        train_batches(prepared, text("good.txt"), 0, batch=10, micro_batch=2, rank=0, world=2, first_step=0)
    assert str(caught.value) == "batch 10 does not split into micro-batches of 2 on 2 ranks; choose a multiple of 4"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_breaks_later_is_named(files, workers):
    """The held-out pictures are not decoded by `prepare`."""
    data = images("photos", evaluation="torn.parquet", workers=workers)
    pa.parquet.write_table(pa.table({"image": [b"no picture"] * 2, "label": ["cat", "dog"]}), "torn.parquet")
    prepared = prepare(data, 0, files / "data")
    with pytest.raises(UserError) as caught:
        next(iter(evaluation_batches(prepared, data, 0, micro_batch=2, rank=0, world=1)))
    assert str(caught.value).startswith("evaluation image 0: cannot be decoded (cannot identify image file")
    assert str(caught.value).endswith("; repair or remove it and prepare again") and "\n" not in str(caught.value)


def test_a_document_that_sentencepiece_does_not_take(files):
    """It says so of some hundred megabytes in one line; here it says so of anything."""

    class Refusing:
        def encode(self, documents: list[str], num_threads: int) -> list[list[int]]:
            raise RuntimeError("Internal: the input is too long")

    tokenizer = SentencePiece.__new__(SentencePiece)
    tokenizer.processor = Refusing()
    with pytest.raises(UserError) as caught:
        tokenizer.encode(["short", "long " * 1000])
    assert str(caught.value).startswith(
        "sentencepiece cannot cut a text of 5,000 characters that begins with 'long long"
    )
    assert "(Internal: the input is too long); cut it into documents" in str(caught.value)

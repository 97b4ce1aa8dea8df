"""What is read back from a run folder is a JSON object, or one line says what lies there instead."""

import threading

import pytest

from pipeline.errors import UserError
from pipeline.records import run_folder
from pipeline.records.run_folder import StageFolder, read_json, write_json

OTHERS = {"[]": "list", '"text"': "string", "3": "number", "0.5": "number", "true": "boolean", "null": "null"}
BROKEN = {"half": b"{half", "no text": b"\xff\xfe{}", "empty": b"", "deep": b"[" * 100_000, "long": b"9" * 5000}


def test_an_object_is_read_as_it_was_written(tmp_path):
    content = {"a": [1, {"b": None}], "c": "ü"}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content and [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("text, kind", OTHERS.items())
def test_anything_but_an_object_is_refused(tmp_path, text, kind):
    (tmp_path / "stage.json").write_text(text)
    with pytest.raises(UserError, match=rf"stage.json: holds a JSON {kind}, not an object of keys") as caught:
        _ = StageFolder(tmp_path).facts
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x.json: not valid JSON .*; the file is damaged or no JSON file") as caught:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_file(tmp_path):
    for path, reason in ((tmp_path / "x.json", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=rf"cannot read it \({reason}\); check the path$"):
            read_json(path)


def test_a_draft_that_cannot_take_its_files_place_is_removed(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_json(tmp_path / "x.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_lock_that_a_killed_process_holds_a_moment_longer_is_waited_for(tmp_path):
    """Its last thread ends behind the first."""
    held = run_folder.share(tmp_path)
    threading.Timer(0.3, held.close).start()
    with run_folder.exclusive(tmp_path):
        assert held.closed

"""A disk without room: what could not be written is said, also when that cannot be written either."""

import errno
import signal
from types import SimpleNamespace

import pytest

from pipeline.errors import UserError, files_explained, full_disk_explained
from pipeline.records.run_folder import write_text
from pipeline.training import launcher
from tests.helpers.processes import in_a_child

NO_ROOM = OSError(errno.ENOSPC, "No space left on device")
WRITER = "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"
ENDED = "[enforce fail at inline_container.cc:672] . unexpected pos 14976 vs 14880"


@pytest.mark.parametrize(
    "error, reason",
    [
        (NO_ROOM, "No space left on device"),
        (RuntimeError(WRITER), "StreamWriter"),
        (RuntimeError(ENDED), "unexpected pos"),
    ],
)
def test_what_is_written_and_how_much_is_free(tmp_path, error, reason):
    with pytest.raises(UserError) as caught, full_disk_explained(tmp_path):
        raise error
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}: cannot be written (") and reason in said
    assert f"bytes are free on the disk of {tmp_path}; make room and run the command again to resume" in said


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), RuntimeError("shapes differ"), KeyError(1)]
)
def test_other_errors_stay(tmp_path, error):
    with pytest.raises(type(error)) as caught, full_disk_explained(tmp_path):
        raise error
    assert caught.value is error


def test_a_file_of_the_run_is_named(tmp_path):
    """The system names none where the disk is full."""
    (tmp_path / "stage.json.draft").symlink_to("/dev/full")
    with pytest.raises(UserError) as caught, files_explained():
        write_text(tmp_path / "stage.json", "x")
    assert f"{tmp_path / 'stage.json'}: cannot be read or written (No space left on device); make room" in str(
        caught.value
    )


def fail(folder, monkeypatch, error) -> int:
    monkeypatch.setenv(launcher.FAILURES, str(folder))
    monkeypatch.setenv("RANK", "0")
    try:
        raise error
    except type(error):
        launcher.tell_failure(error)
    return 0


LOST = RuntimeError("Connection closed by peer")
"""What a worker meets where another has ended."""


@pytest.mark.parametrize("error", [UserError("the disk of the run is full; make room"), LOST])
def test_a_message_that_cannot_be_left(tmp_path, monkeypatch, error):
    """It goes to the terminal in one line, and the exit code tells the parent."""
    folder = tmp_path / "failures"
    folder.mkdir()
    (folder / "rank-0.txt").symlink_to("/dev/full")
    ended = in_a_child(lambda: fail(folder, monkeypatch, error), tmp_path / "said")
    assert ended.code == launcher.UNTOLD and str(error) in ended.said and ended.said.count("\n") == 1


@pytest.mark.parametrize("left", [True, False])
def test_the_parent_says_so(tmp_path, left):
    """A file that was begun and is empty is no message."""
    if left:
        (tmp_path / "rank-0.txt").write_text("")
    codes = {0: launcher.UNTOLD, 1: -signal.SIGTERM}
    failures = {rank: SimpleNamespace(exitcode=code, pid=rank) for rank, code in codes.items()}
    said = str(launcher._failure(tmp_path, SimpleNamespace(failures=failures), set()))
    assert said.startswith(f"worker 0 failed and could not leave its message in {tmp_path}; the disk is full"), said

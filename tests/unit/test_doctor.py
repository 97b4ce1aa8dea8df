"""The doctor's verdicts on what a machine may have."""

import pytest
from packaging.specifiers import SpecifierSet

from pipeline.doctor import disk, examine, machine
from pipeline.doctor.finding import Finding
from pipeline.errors import UserError


def test_versions_outside_of_their_range_are_bad():
    ranges = {"torch": SpecifierSet(">=2.11,<2.14"), "deepspeed": SpecifierSet(">=0.19.8,<0.20")}
    found = machine.versions({"torch": "2.13.0+cpu", "deepspeed": "0.18.7", "lemon": "1"}, ranges)
    assert [finding.verdict for finding in found] == ["ok", "bad", "ok"]


@pytest.mark.parametrize("free, verdict", [(0, "bad"), (64 << 20, "note"), (8 << 30, "ok")])
def test_shared_memory(free, verdict):
    assert machine.shared_memory(free).verdict == verdict


@pytest.mark.parametrize("limit, verdict", [(64, "bad"), (512, "note"), (1024, "ok"), (-1, "ok")])
def test_open_files(limit, verdict):
    assert machine.open_files(limit).verdict == verdict


def test_a_full_disk_is_bad_and_not_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "LEAST_FREE", 1 << 60)
    assert [finding.verdict for finding in disk.disk(tmp_path)] == ["bad", "ok"]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_bad(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disk.tempfile, "TemporaryDirectory", refuse)
    assert [finding.verdict for finding in disk.disk(tmp_path)] == ["ok", "bad"]


def test_a_clock_that_is_off_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.time, "time", lambda: 0.0)
    found = disk.clock(tmp_path)
    assert found.verdict == "note" and "ahead of this machine's; synchronise both" in found.text


def test_one_bad_verdict_decides(monkeypatch, capsys, tmp_path):
    """Also where the workers do not even start."""

    def fail(*_):
        raise UserError("worker 1 died (SIGKILL)")

    for name in ("machine", "disk"):
        monkeypatch.setattr(examine, name, lambda *_: [Finding(subject="x", verdict="note", text="y")])
    monkeypatch.setattr(examine.launcher, "launch", fail)
    assert not examine.examine(tmp_path)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "bad  workers        worker 1 died (SIGKILL)",
        "3 verdicts: 1 bad, 2 to note",
    ]

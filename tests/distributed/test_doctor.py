"""lemon doctor: the whole of it, and whether its parity would see what it is there for."""

import re

import pytest

from tests.helpers.cli import lemon

PARITY = "tests.helpers.scripts.doctor_parity"


@pytest.mark.slow
def test_parity_sees_a_lost_micro_batch(workers):
    """As DeepSpeed 0.18.6 to 0.18.9 lost it in ZeRO-1 with bf16."""
    assert workers.run(f"{PARITY}:losing", {"precisions": ["fp32", "bf16"]}, world=2) == ["bad"] * 8


@pytest.mark.slow
def test_a_verdict_a_line(tmp_path, capfd):
    """Workers print their own lines, as they come."""
    code, out, err = lemon(capfd, "doctor", "--folder", tmp_path / "runs" / "none", "--processes", "2")
    *lines, last = [line for line in out.splitlines() if line]
    lines = [line for line in lines if re.match("(ok|note|bad) ", line)]
    assert code == 0 and not err.count("Traceback"), out + err
    assert re.fullmatch(rf"{len(lines)} verdicts: 0 bad, \d+ to note", last), out
    subjects = [line[5:20].strip() for line in lines]
    for subject in (
        "torch",
        "deepspeed",
        "transformers",
        "devices",
        "open files",
        "clock",
        "disk, writing",
        "bandwidth",
    ):
        assert subject in subjects, subject
    assert subjects.count("parity") in (4, 8) and not list(tmp_path.iterdir())

"""benchmarks/training_speed.py compares what it says: every side trains on the same samples, and has its row."""

import re
from pathlib import Path

import pytest

from tests.helpers.cli import run_python

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training_speed.py"
SIDES = ("lemon", "deepspeed", "plain", "trainer")


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["tiny", "tiny-vit"])
def test_every_side_has_its_row(shape):
    """Without the compiled side, which differs in one argument of transformers' and takes a minute."""
    chosen = ("--shapes", shape, "--precisions", "bf16", "--steps", "2", "--rounds", "1")
    done = run_python(SCRIPT, *chosen, "--sides", *SIDES, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (\S+) \| ([\d.]+) \| ([\d.]+) \|", done.stdout, re.MULTILINE)
    assert [name for name, *_ in rows] == list(SIDES)
    assert all(float(milliseconds) > 0 for _, milliseconds, _ in rows)
    assert "overhead of a step, ours" in done.stdout and re.search(r"^MFU [\d.]+ %", done.stdout, re.MULTILINE)

"""The share of a matrix that a commit draws: always the same, some of every kind, all of it over some commits."""

import subprocess
from pathlib import Path

import pytest

from tests.helpers.rotation import VARIABLE, draw, todays_seed

pytest_plugins = "pytester"
ROOT = Path(__file__).resolve().parents[2]
CASES = [f"case {number}" for number in range(10)]

MATRIX = """
import pytest
from tests.helpers.rotation import rotated

@rotated(one_in=4, of="case", alike=lambda case: case[0])
@pytest.mark.parametrize("layout", ["x", "y"])
@pytest.mark.parametrize("case", ["a1", "a2", "a3", "a4", "a5", "b1", "b2"])
def test_matrix(case, layout):
    pass
"""


def test_one_seed_draws_the_same_and_all_seeds_draw_everything():
    assert draw(CASES, 3, "a") == draw(reversed(CASES), 3, "a") and len(draw(CASES, 3, "a")) == 4
    assert draw(CASES, 1, "a") == set(CASES) and len(draw(CASES, 100, "a")) == 1
    assert set().union(*(draw(CASES, 3, str(seed)) for seed in range(40))) == set(CASES)


def test_the_seed_is_the_commit_unless_it_is_given(monkeypatch):
    todays_seed.cache_clear()
    monkeypatch.setenv(VARIABLE, "mine")
    assert todays_seed() == "mine"
    todays_seed.cache_clear()
    monkeypatch.delenv(VARIABLE)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    assert todays_seed() == (head or None)
    monkeypatch.setenv("PATH", "")
    todays_seed.cache_clear()
    assert todays_seed() is None
    todays_seed.cache_clear()


@pytest.mark.parametrize(
    "more, names, count",
    [([], 3, 6), (["-m", "slow or not slow"], 7, 14), (["-m", "slow"], 4, 8)],
    ids=["default", "whole", "rest"],
)
def test_what_is_not_drawn_is_slow(pytester, more, names, count):
    """Two of five cases of one kind and one of two of the other, each in both layouts."""
    pytester.makepyfile(MATRIX)
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    pytester.makepyprojecttoml(
        (ROOT / "pyproject.toml")
        .read_text()
        .replace('pythonpath = ["."]', f'pythonpath = ["{ROOT}"]')
        .replace('testpaths = ["tests"]\n', "")
    )
    done = pytester.runpytest_subprocess("-v", "-p", "no:cacheprovider", *more)
    passed = {line.split("[")[1].split("-")[0] for line in done.outlines if "PASSED" in line}
    assert len(passed) == names and done.parseoutcomes()["passed"] == count

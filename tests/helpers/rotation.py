"""Large matrices of cases: every commit draws its share, and over some commits all of them have run.

The rest is marked `slow`, which the default run leaves out (`addopts` in pyproject.toml); `-m "slow or not slow"` runs
the whole matrix. LEMON_TEST_SEED=… draws another share, or that of another commit by its full hash.
"""

import hashlib
import os
import subprocess
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "LEMON_TEST_SEED"


def rotated(
    *, one_in: int, of: str | tuple[str, ...], alike: Callable[..., Hashable] | None = None
) -> pytest.MarkDecorator:
    """Decorate a parametrized test: one in `one_in` cases is drawn, rounded up.

    of: the parameters whose values are a case; tests that differ in others only are drawn together. alike: cases for
    which it gives the same value stand for each other, and of each such group at least one is drawn; it gets the
    parameters `of` by name. Without it all cases are alike.
    """
    return pytest.mark.rotated(one_in=one_in, of=(of,) if isinstance(of, str) else of, alike=alike)


def mark_what_is_not_drawn(items: Iterable[pytest.Item]) -> None:
    """Mark as `slow` what today's seed does not draw. Everything is drawn where there is no seed."""
    seed, tests = todays_seed(), defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("rotated"):
            tests[item.nodeid.partition("[")[0]].append(item)
    for name, same in tests.items() if seed else ():
        drawn = _drawn(same, f"{seed} {name}")
        for item in (item for item in same if _case(item) not in drawn):
            item.add_marker("slow")


@cache
def todays_seed() -> str | None:
    """LEMON_TEST_SEED, else the hash of the commit that is checked out, else (no repository, no git) None."""
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def draw(cases: Iterable[str], one_in: int, seed: str) -> set[str]:
    """One in `one_in` of the cases, rounded up: those whose hash together with the seed is smallest."""
    ranked = sorted(set(cases), key=lambda case: hashlib.sha256(f"{seed} {case}".encode()).digest())
    return set(ranked[: -(-len(ranked) // one_in)])


def _drawn(items: list[pytest.Function], seed: str) -> set[str]:
    rule = items[0].get_closest_marker("rotated").kwargs
    groups: dict[Hashable, set[str]] = defaultdict(set)
    for item in items:
        groups[rule["alike"](**_parameters(item)) if rule["alike"] else None].add(_case(item))
    return set().union(*(draw(cases, rule["one_in"], seed) for cases in groups.values()))


def _parameters(item: pytest.Function) -> dict[str, object]:
    return {name: item.callspec.params[name] for name in item.get_closest_marker("rotated").kwargs["of"]}


def _case(item: pytest.Function) -> str:
    """A name that is the same in every process: no value is shown by its address."""
    return repr(sorted(_parameters(item).items()))

"""A share of the soak: other faults with every commit, in a run that must end as if nothing had been."""

import pytest

from tests.helpers.processes import Child
from tests.helpers.rotation import todays_seed
from tests.soak.__main__ import main

FAULTS = 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_under_faults_ends_as_if_nothing_had_been(tmp_path):
    seed = todays_seed() or "0"
    command = ["--folder", str(tmp_path / "soak"), "--faults", str(FAULTS), "--seed", seed]
    print("python -m tests.soak", *command)
    ended = Child(lambda: main(command), tmp_path / "said").end(840)
    assert ended.code == 0, f"{ended.said}; seed {seed}: see the tables above"

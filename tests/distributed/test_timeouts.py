"""No process group keeps torch's default time-out, whoever has made it."""

import os

import pytest

from pipeline.config.hang import HangChoice
from pipeline.errors import FaultError
from pipeline.training import process_group
from tests.helpers.cli import environment
from tests.helpers.ports import free_port
from tests.helpers.processes import in_a_child

GROUPS = "tests.helpers.scripts.engine_losses:timeouts_of_groups"


@pytest.mark.parametrize("zero_stage, minutes", list(enumerate((41, 42, 43, 44))))
def test_every_group_of_an_engine_has_the_configs(workers, tmp_path, zero_stage, minutes):
    """The default group, and those that DeepSpeed makes."""
    fields = {"zero_stage": zero_stage, "batch": 2, "micro_batch": 1}
    job = {"stage": fields, "collective": f"{minutes} minutes", "folder": str(tmp_path)}
    found = workers.run(GROUPS, job, world=2)
    assert len(found) >= 2 and set(found) == {minutes * 60.0}


def test_ranks_that_do_not_start_are_not_waited_for_longer_than_the_start_may_take(tmp_path):
    """Rank 1 of 2 never comes."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    short = HangChoice(step="1 second", pause="1 second", first="2 seconds")

    def join() -> int:
        os.environ.update(environment(**alone, MASTER_PORT=str(free_port())))
        with pytest.raises(FaultError, match=r"^rank 0 of 2 has not met all others within 2 seconds "):
            process_group.join(short)
        return 7

    assert in_a_child(join, tmp_path / "said").code == 7, (tmp_path / "said").read_text()

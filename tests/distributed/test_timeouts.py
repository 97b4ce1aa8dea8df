"""No process group keeps torch's default time-out, whoever has made it."""

import pytest

GROUPS = "tests.helpers.scripts.engine_losses:timeouts_of_groups"


@pytest.mark.parametrize("zero_stage, minutes", list(enumerate((41, 42, 43, 44))))
def test_every_group_of_an_engine_has_the_configs(workers, tmp_path, zero_stage, minutes):
    """The default group, and those that DeepSpeed makes."""
    fields = {"zero_stage": zero_stage, "batch": 2, "micro_batch": 1}
    job = {"stage": fields, "collective": f"{minutes} minutes", "folder": str(tmp_path)}
    found = workers.run(GROUPS, job, world=2)
    assert len(found) >= 2 and set(found) == {minutes * 60.0}

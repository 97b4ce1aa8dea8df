"""What a worker takes from the environment of its launcher."""

import pytest

from pipeline.errors import UserError
from pipeline.training import launcher


@pytest.mark.parametrize("text", ["abc", "", "-1", "2.5"])
@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE", "GROUP_RANK", launcher.PARENT, launcher.LOG_LEVEL])
def test_what_is_no_number_is_named(tmp_path, monkeypatch, variable, text):
    monkeypatch.setattr(launcher, "die_with_parent", lambda parent: None)
    monkeypatch.setenv(variable, text)

    def start() -> None:
        launcher.is_worker()
        launcher.become_worker(tmp_path).close()

    with pytest.raises(UserError) as caught:
        start()
    assert str(caught.value).startswith(f"{variable}={text} in the environment: launchers set a whole number there")


@pytest.mark.parametrize(
    "given, worker", [({}, False), ({"RANK": "0"}, False), ({"RANK": "0", "WORLD_SIZE": "2"}, True)]
)
def test_a_rank_among_ranks_is_a_worker(monkeypatch, given, worker):
    for variable in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    assert launcher.is_worker() is worker

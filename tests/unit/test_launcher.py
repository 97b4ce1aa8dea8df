"""What a worker takes from the environment of its launcher."""

import pytest

from pipeline.errors import UserError
from pipeline.training import launcher


@pytest.mark.parametrize("text", ["abc", "", "-1", "2.5"])
@pytest.mark.parametrize("variable", ["GROUP_RANK", launcher.PARENT, launcher.LOG_LEVEL])
def test_what_is_no_number_is_named(tmp_path, monkeypatch, variable, text):
    monkeypatch.setattr(launcher, "die_with_parent", lambda parent: None)
    monkeypatch.setenv(variable, text)
    with pytest.raises(UserError) as caught:
        launcher.become_worker(tmp_path).close()
    assert str(caught.value).startswith(f"{variable}={text} in the environment: launchers set a whole number there")

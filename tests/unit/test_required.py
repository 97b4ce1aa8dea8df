"""tests/helpers/required.py: what is missing is a skip for a developer, and a failure in CI."""

import pytest

from tests.helpers import required
from tests.helpers.required import require, require_module, require_namespaces

MISSING = [
    (
        lambda: require("no-such-daemon", "some-package"),
        "no-such-daemon is not installed (apt-get install some-package)",
    ),
    (
        lambda: require_module("no_such_module.inner", "some-name"),
        "no_such_module.inner is not installed (pip install some-name)",
    ),
]


@pytest.mark.parametrize("demand, reason", MISSING)
@pytest.mark.parametrize("ci", [None, "true"])
def test_what_is_missing(monkeypatch, demand, reason, ci):
    monkeypatch.delenv("CI", raising=False)
    if ci:
        monkeypatch.setenv("CI", ci)
    with pytest.raises((pytest.skip.Exception, pytest.fail.Exception)) as outcome:
        demand()
    assert outcome.type is (pytest.fail.Exception if ci else pytest.skip.Exception)
    assert outcome.value.msg.startswith(reason)


def test_what_is_there(tmp_path, monkeypatch):
    assert require("sh", "dash").endswith("/sh") and require_module("json.decoder", "json").JSONDecoder
    daemon = tmp_path / "daemon"
    daemon.touch(mode=0o755)
    monkeypatch.setattr(required, "SYSTEM", str(tmp_path))
    assert require("daemon", "of-its-own") == str(daemon)


def test_a_kernel_without_namespaces_is_a_skip_in_ci_too(tmp_path, monkeypatch):
    unshare = tmp_path / "unshare"
    unshare.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2; exit 1\n")
    unshare.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.skip.Exception, match="Operation not permitted"):
        require_namespaces()

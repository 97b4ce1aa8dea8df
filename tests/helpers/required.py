"""What a test needs of the machine. Where it is missing a developer's test is skipped with the reason; CI's fails."""

import os
import shutil
import subprocess
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NoReturn

import pytest

SYSTEM = "/usr/sbin:/sbin"
"""Where daemons lie; not on every user's path."""
NAMESPACES = ("--net", "--uts", "--mount", "--pid", "--fork")
"""Options of unshare(1): what a host has of its own."""


def require(program: str, package: str) -> str:
    """Its path. package: Debian's, which .ci/run installs."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:{SYSTEM}")
    return path or _missing(f"{program} is not installed (apt-get install {package})")


def require_module(name: str, package: str) -> ModuleType:
    """package: what pip calls it."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return _missing(f"{name} is not installed (pip install {package})")


def require_namespaces() -> None:
    """Skips, in CI too, where this user or this kernel may not make them."""
    if refusal := _refused(require("unshare", "util-linux")):
        pytest.skip(f"namespaces are not allowed here: {refusal}")


@cache
def _refused(unshare: str) -> str:
    """Why, in unshare's words; empty: they are allowed."""
    done = subprocess.run([unshare, *NAMESPACES, "true"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}; with CI=true nothing that .ci/run installs may be missing")
    pytest.skip(reason)

"""All tests of this folder start real processes that train together."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock

from tests.helpers.cli import lemon_here
from tests.helpers.runs import tiny_run
from tests.helpers.workers import WorkerPools

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("distributed")


@pytest.fixture(scope="session")
def workers() -> Iterator[WorkerPools]:
    """Processes that take jobs: started when the first test asks for their number, ended with the session."""
    with WorkerPools() as pools:
        yield pools


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The run that nobody interrupted; all of pytest's processes share it. Its small stage writes TensorBoard's events
    where that package is there."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "finished"
    with FileLock(f"{folder}.lock"):
        if not (folder / "run" / "report.html").exists():
            folder.mkdir()
            tensorboard = str(find_spec("tensorboard") is not None).lower()
            lemon_here("run", tiny_run(folder), f"stages.small.tensorboard={tensorboard}")
    return folder

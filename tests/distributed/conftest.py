"""All tests of this folder start real processes that train together."""

from collections.abc import Iterator
from pathlib import Path

import pytest

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

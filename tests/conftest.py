"""Which cases of the large matrices run with this commit, and which tests share a process where several run them."""

import pytest

from tests.helpers.rotation import mark_what_is_not_drawn


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_what_is_not_drawn(items)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_shared(item)))


def _shared(item: pytest.Item) -> str:
    """One process for a file, whose fixtures are expensive, and one for all who train on the same workers."""
    return "workers" if "workers" in getattr(item, "fixturenames", ()) else str(item.path)

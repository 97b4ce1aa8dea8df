"""Which cases of the large matrices run with this commit."""

import pytest

from tests.helpers.rotation import mark_what_is_not_drawn


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_what_is_not_drawn(items)

"""Importing what is heavy, in the commands that need it."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports() -> Iterator[None]:
    """For import statements: Python looks for no garbage meanwhile. torch and transformers make millions of objects
    and hardly any of that; looking for it takes a sixth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

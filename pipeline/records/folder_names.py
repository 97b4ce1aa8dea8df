"""Names of runs and stages, which become folders."""

import re
from typing import Annotated

from pydantic import AfterValidator


def usable_as_folder(name: str) -> str:
    """`name` itself. Raises ValueError for one that leads out of the folder it lies in, or is awkward in a shell."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", name):
        raise ValueError(
            f"'{name:.60}' cannot name a folder; use at most 200 letters, digits, '_', '.' and '-', a letter or digit "
            "first"
        )
    return name


FolderName = Annotated[str, AfterValidator(usable_as_folder)]

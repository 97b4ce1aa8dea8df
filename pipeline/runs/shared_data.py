"""Runs that read the same prepared data, which lie in the folder of one of them."""

import os
from pathlib import Path


def share(data: Path, folder: Path) -> None:
    """Let the run in `folder` read `data`, by a relative link, so that both may be moved together. What lies there
    already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "data"
    if place.is_symlink() and not place.exists():
        place.unlink()
    if not place.exists():
        place.symlink_to(os.path.relpath(data, folder))

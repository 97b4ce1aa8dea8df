"""What the scripts of this folder share: `lemon COMMAND` from a checkout in which the package is not installed."""

import sys
from pathlib import Path
from typing import NoReturn


def run(command: str) -> NoReturn:
    """Run `lemon COMMAND` with the script's arguments and exit with its code."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from pipeline.cli import main

    sys.exit(main([command, *sys.argv[1:]]))

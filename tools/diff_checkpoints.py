#!/usr/bin/env python
"""Compare two checkpoints number by number, where the console command is not installed: the same as `lemon diff`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main

sys.exit(main(["diff", *sys.argv[1:]]))

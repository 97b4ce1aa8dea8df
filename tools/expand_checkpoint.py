#!/usr/bin/env python
"""Expand a checkpoint offline, where the console command is not installed: the same as `lemon expand`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main

sys.exit(main(["expand", *sys.argv[1:]]))

#!/usr/bin/env python
"""Prepare a config's data, where the console command is not installed: the same as `lemon prepare`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main

sys.exit(main(["prepare", *sys.argv[1:]]))

#!/usr/bin/env python
"""Verify a grown checkpoint, where the console command is not installed: the same as `lemon verify`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main

sys.exit(main(["verify", *sys.argv[1:]]))

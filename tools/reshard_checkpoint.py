#!/usr/bin/env python
"""Write a checkpoint in another layout, stage or world size, where the console command is not installed: the same as `lemon reshard`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main

sys.exit(main(["reshard", *sys.argv[1:]]))

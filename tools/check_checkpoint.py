#!/usr/bin/env python
"""Hash every byte of a checkpoint against its manifest, where the console command is not installed: the same as `lemon check`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main

sys.exit(main(["check", *sys.argv[1:]]))

#!/usr/bin/env python
"""Say what a checkpoint is, where the console command is not installed: the same as `lemon inspect`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main

sys.exit(main(["inspect", *sys.argv[1:]]))

#!/usr/bin/env python
"""Say what an expansion would do, where the console command is not installed: the same as `lemon plan`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main

sys.exit(main(["plan", *sys.argv[1:]]))

#!/usr/bin/env python
"""Write the FLOPs report of runs, where the console command is not installed: the same as `lemon report`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main

sys.exit(main(["report", *sys.argv[1:]]))

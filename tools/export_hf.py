#!/usr/bin/env python
"""Write a checkpoint as a Hugging Face folder, where the console command is not installed: the same as `lemon export`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main

sys.exit(main(["export", *sys.argv[1:]]))

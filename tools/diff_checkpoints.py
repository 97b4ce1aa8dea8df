#!/usr/bin/env python
"""Compare two checkpoints number by number: `lemon diff`."""

from _command import run

run("diff")

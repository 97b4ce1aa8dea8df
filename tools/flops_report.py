#!/usr/bin/env python
"""Write the FLOPs report of runs: `lemon report`."""

from _command import run

run("report")

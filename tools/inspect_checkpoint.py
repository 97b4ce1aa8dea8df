#!/usr/bin/env python
"""Say what a checkpoint is: `lemon inspect`."""

from _command import run

run("inspect")

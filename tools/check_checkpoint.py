#!/usr/bin/env python
"""Hash every byte of a checkpoint against its manifest: `lemon check`."""

from _command import run

run("check")

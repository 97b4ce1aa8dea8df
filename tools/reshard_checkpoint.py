#!/usr/bin/env python
"""Write a checkpoint in another layout, stage or world size: `lemon reshard`."""

from _command import run

run("reshard")

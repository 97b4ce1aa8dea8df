#!/usr/bin/env python
"""Expand a checkpoint offline: `lemon expand`."""

from _command import run

run("expand")

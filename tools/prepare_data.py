#!/usr/bin/env python
"""Prepare a config's data: `lemon prepare`."""

from _command import run

run("prepare")

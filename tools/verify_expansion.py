#!/usr/bin/env python
"""Verify a grown checkpoint: `lemon verify`."""

from _command import run

run("verify")

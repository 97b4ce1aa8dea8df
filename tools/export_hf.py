#!/usr/bin/env python
"""Write a checkpoint as a Hugging Face folder: `lemon export`."""

from _command import run

run("export")

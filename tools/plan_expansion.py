#!/usr/bin/env python
"""Say what an expansion would do: `lemon plan`."""

from _command import run

run("plan")

"""`lemon doctor`: whether this machine can train, one verdict a line.

finding (a verdict) -> machine, disk (asked in this process) -> workers, with parity and bandwidth (in processes that
train together) -> examine (all of it, in order).
"""

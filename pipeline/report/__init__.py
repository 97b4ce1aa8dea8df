"""`lemon report`: what training cost and what growing saved, as one page and as data.

`build` reads run folders and computes everything, `write` shows it, `summary` is its headline for a terminal.
"""

from pipeline.report.build import build
from pipeline.report.render import summary, write

__all__ = ["build", "summary", "write"]

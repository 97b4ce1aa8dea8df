"""`lemon report`: what training cost and what growing saved, as one page and as data."""

from pipeline.report.build import build
from pipeline.report.render import summary, write

__all__ = ["build", "summary", "write"]

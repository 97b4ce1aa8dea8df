"""The config of a tiny run whose stages share one schedule."""

from pathlib import Path

import yaml

from tests.helpers.runs import tiny_run

PLAN = {"kind": "wsd", "peak": 1e-3, "minimum": 1e-4, "warmup": "4 steps", "decay": "6 steps", "horizon": "40 steps"}


def chain(folder: Path, plan: dict = PLAN, **large: object) -> Path:
    """`small` up to 30 % of the schedule, and `large`, with which it goes on."""
    path = tiny_run(folder)
    content = yaml.safe_load(path.read_text())
    small, grown = (next(s for s in content["stages"] if s["name"] == name) for name in ("small", "large"))
    small |= {"schedule": plan, "grow_at": "30 %"}
    grown |= {"schedule": {**plan, "continue": True}, "data": {"continue": True}, **large}
    path.write_text(yaml.safe_dump(content))
    return path

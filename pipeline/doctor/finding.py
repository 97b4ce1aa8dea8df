"""One verdict."""

from typing import Literal

from pipeline.records.strict import Strict


class Finding(Strict):
    """verdict: bad where a run would fail or give wrong numbers, note where it may be slow. text: what was found, and
    behind a semicolon the way out."""

    subject: str
    verdict: Literal["ok", "note", "bad"]
    text: str

    @property
    def line(self) -> str:
        return f"{self.verdict:<5}{self.subject:<15}{self.text}"


def graded(subject: str, text: str, way_out: str, *, bad: bool = False, note: bool = False) -> Finding:
    """A finding with its way out where it needs one."""
    verdict: Literal["ok", "note", "bad"] = "bad" if bad else "note" if note else "ok"
    return Finding(subject=subject, verdict=verdict, text=text if verdict == "ok" else f"{text}; {way_out}")

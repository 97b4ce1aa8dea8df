"""What a soak has done so far: JSON lines in `soak.jsonl`, all that it needs to go on."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Record:
    """One fault. moment: seconds after its command's start. detection: seconds until the command had ended; restart:
    from the next start to the next finished step. gone: seconds until no process of the command was left. redone: steps
    by stage. wrong: what was not as it should be."""

    chain: int
    number: int
    kind: str
    phase: str
    planned_phase: str
    moment: float
    told: str = ""
    code: int | None = None
    detection: float | None = None
    restart: float | None = None
    gone: float | None = None
    redone: dict[str, int] = field(default_factory=dict)
    said: str = ""
    wrong: list[str] = field(default_factory=list)


@dataclass
class End:
    """The end of a run: where it differs from the one that nobody disturbed. A run without an end is one in which the
    soak itself was stopped."""

    chain: int
    variant: str
    end: list[str]


class Log:
    """A file of a soak's folder. A fault's restart time comes as a line of its own, when it is known."""

    def __init__(self, path: Path):
        self.path = path
        self.faults: list[Record] = []
        self.ends: list[End] = []
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
            if line.endswith("}\n"):
                self._read(json.loads(line))

    def _read(self, content: dict) -> None:
        if "end" in content:
            self.ends.append(End(**content))
        elif "kind" in content:
            self.faults.append(Record(**content))
        elif self.faults:
            self.faults[-1].restart = content["restart"]

    def add(self, entry: Record | End) -> None:
        (self.faults if isinstance(entry, Record) else self.ends).append(entry)
        self._write(asdict(entry))

    def restarted(self, seconds: float) -> None:
        """Of the last fault."""
        self.faults[-1].restart = seconds
        self._write({"restart": seconds})

    @property
    def next_chain(self) -> int:
        """A number that none has yet; one that has no end is not gone on with."""
        return 1 + max((entry.chain for entry in (*self.faults, *self.ends)), default=-1)

    def of_chain(self, number: int) -> list[Record]:
        return [fault for fault in self.faults if fault.chain == number]

    def redone(self, chain: int) -> dict[str, int]:
        """Steps by stage."""
        total: Counter[str] = Counter()
        for fault in self.of_chain(chain):
            total.update(fault.redone)
        return dict(total)

    @property
    def wrong(self) -> list[str]:
        """All that was not as it should be."""
        faults = [f"chain {fault.chain}, fault {fault.number}: {text}" for fault in self.faults for text in fault.wrong]
        return [*faults, *(f"chain {end.chain} ({end.variant}): {text}" for end in self.ends for text in end.end)]

    def _write(self, content: dict) -> None:
        half = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * half + json.dumps(content) + "\n")

"""What a soak has found, as tables in Markdown."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from statistics import median

from tests.soak.faults import PHASES
from tests.soak.log import Log, Record


def report(log: Log) -> str:
    """Counts by kind and phase; times and redone steps by kind; what was wrong."""
    kinds: dict[str, list[Record]] = defaultdict(list)
    for fault in log.faults:
        kinds[fault.kind].append(fault)
    phases = [*PHASES, *sorted({fault.phase for fault in log.faults} - set(PHASES))]
    whole = [end for end in log.ends if not end.end]
    runs = len({fault.chain for fault in log.faults})
    found = f"hangs: {_count(log, 'hang')}, orphans: {_count(log, 'orphans')}, all that was wrong: {len(log.wrong)}"
    lines = [
        f"{len(log.faults)} faults in {runs} runs; {len(whole)} of these ended as if nothing had been; {found}",
        "",
        *_table(
            ["fault", *phases, "all"], ([kind, *_by_phase(found, phases)] for kind, found in sorted(kinds.items()))
        ),
        "",
        *_table(
            ["fault", "until the command ended, s", "from the next start to the next step, s", "steps redone"],
            ([kind, *_times(found)] for kind, found in [*sorted(kinds.items()), ("all", log.faults)]),
        ),
    ]
    return "\n".join([*lines, *(["", *log.wrong] if log.wrong else [])])


def _count(log: Log, what: str) -> int:
    return sum(what in text for text in log.wrong)


def _by_phase(found: list[Record], phases: list[str]) -> list[object]:
    return [*(sum(fault.phase == phase for fault in found) or "" for phase in phases), len(found)]


def _times(found: list[Record]) -> list[object]:
    """Median and maximum."""
    redone = [sum(fault.redone.values()) for fault in found]
    return [
        _spread(found, lambda fault: fault.detection),
        _spread(found, lambda fault: fault.restart),
        _both(redone, 0),
    ]


def _spread(found: list[Record], of: Callable[[Record], float | None]) -> str:
    return _both([value for fault in found if (value := of(fault)) is not None], 2)


def _both(values: list[float], digits: int) -> str:
    return f"{median(values):.{digits}f}, at most {max(values):.{digits}f}" if values else ""


def _table(head: list[str], rows: Iterable[list[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]

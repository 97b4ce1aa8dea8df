"""What runs that end at one model have cost as a whole, and where they have ended, as a table.

    python benchmarks/whole_runs.py runs/in-mid-run-bert      after lemon run configs/growth/in-mid-run-bert.yaml

A row is a training stage from which nothing is grown. Its FLOPs are those of training (forward, backward,
recomputation) of the stage and of all that it came from, its loss that of its last evaluation, at the end of its
decay; both also as compared with the stage of the same model that began from scratch.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script it sees its own folder only

from pipeline.accounting.lineage import origins
from pipeline.accounting.recorded_runs import RecordedRun, RecordedStage, RecordReader
from pipeline.accounting.totals import training_flops


@dataclass(frozen=True)
class Row:
    """way: the stages, oldest first. flops: of training, of all of them. steps: of all of them."""

    way: tuple[str, ...]
    loss: float
    top1: float | None
    flops: int
    steps: int


def rows(run: RecordedRun, reader: RecordReader) -> Iterator[Row]:
    """The ends of a run, in its order. Raises UserError for damaged files."""
    grown = {stage.facts.origin for stage in run.stages.values() if stage.facts and stage.kind == "expand"}
    for stage in run.models:
        if stage.finished and stage.name not in grown and stage.evaluations:
            yield _row(stage, reader)


def _row(stage: RecordedStage, reader: RecordReader) -> Row:
    chain, _ = origins(stage, reader)
    before = [ancestor for ancestor in reversed(chain) if ancestor.trains]
    last, own = stage.evaluations[-1], training_flops(stage.ledger, stage.last_step)
    flops = own + sum(ancestor.training_flops or 0 for ancestor in before)
    steps = stage.last_step + sum(ancestor.last_step for ancestor in before)
    return Row((*(ancestor.name for ancestor in before), stage.name), last.loss, last.top1, flops, steps)


def table(found: list[Row]) -> str:
    """In Markdown; the first row from scratch is what the others are compared with."""
    scratch = next((row for row in found if len(row.way) == 1), None)
    lines = ["| stages | steps | loss at the end | training FLOPs |", "|---|---|---|---|"]
    for row in found:
        loss = f"{row.loss:.4f}" + (f", top-1 {100 * row.top1:.1f} %" if row.top1 is not None else "")
        flops = f"{row.flops:.3e}"
        if scratch and row is not scratch:
            loss += f" ({100 * (row.loss / scratch.loss - 1):+.1f} %)"
            flops += f" ({100 * (row.flops / scratch.flops - 1):+.1f} %)"
        lines.append(f"| {', '.join(row.way)} | {row.steps:,} | {loss} | {flops} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    reader = RecordReader()
    for run in reader.runs(parser.parse_args().runs):
        print(f"{run.title}\n\n{table(list(rows(run, reader)))}\n")


if __name__ == "__main__":
    main()

"""What rank 0, and any other rank, does at many ranks, without starting one: a table of CPU seconds.

    python benchmarks/many_ranks.py                      1 and 1,024 ranks, BERT-large: a minute
    python benchmarks/many_ranks.py --ranks 8 64 512

Sampler: a rank's numbers and rows of 1,000 steps, and its numbers of the evaluation set. Manifest: of two files for
each rank, written, read with the sizes of all files, and verified in shares, of which a rank has one. Ledger: 10,000
steps appended, and accounted for. Plan: all files of a checkpoint, with every tensor's place, ready to be written.
"""

import argparse
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script it sees its own folder only

from benchmarks.states import SIZES, state
from pipeline import models
from pipeline.checkpoints import manifest
from pipeline.checkpoints.layouts import zero_write
from pipeline.checkpoints.state import State
from pipeline.data.sampler import evaluation_numbers, locate, training_numbers
from pipeline.records.file_hashes import hashes
from pipeline.records.stage_records import Ledger, LedgerEntry

SAMPLES, EVALUATION, STEPS = 100_000_000, 100_000, 1000
MICRO_BATCH, PARTS = 8, 2
Row = tuple[str, float]


def timed(name: str, work: Callable[[], object]) -> Row:
    begun = time.process_time()
    work()
    return name, time.process_time() - begun


def sampler(ranks: int) -> Iterator[Row]:
    last, batch = ranks - 1, MICRO_BATCH * PARTS * ranks

    def train() -> None:
        for numbers in islice(training_numbers(batch, MICRO_BATCH, last, ranks, 500_000), STEPS * PARTS):
            locate(0, list(numbers), SAMPLES)  # type: ignore[arg-type]  # as the loader passes them

    yield timed(f"sampler, {STEPS:,} steps of a rank", train)
    share = evaluation_numbers(EVALUATION, MICRO_BATCH, last, ranks)
    yield timed(f"sampler, {EVALUATION:,} samples of evaluation, a rank's", lambda: deque(share, maxlen=0))


def manifests(ranks: int, work: Path) -> Iterator[Row]:
    for rank in range(ranks):
        for kind in ("model", "optim"):
            (work / f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt").write_text(f"{kind} {rank}")
    files = hashes(work, manifest.listing(work), "blake3")
    content = manifest.Manifest(provenance={}, files=files)
    yield timed("manifest, written", lambda: (work / manifest.NAME).write_text(content.text()))
    yield timed("manifest, read on rank 0, sizes of all files", lambda: manifest.read(work))
    yield timed("manifest, read and a share verified, any rank", lambda: manifest.verify_share(work, ranks - 1, ranks))


def ledgers(work: Path) -> Iterator[Row]:
    ledger = Ledger(work / "ledger.jsonl")

    def append() -> None:
        for step in range(1, 10_001):
            ledger.append(LedgerEntry(step=step, kind="train", flops=10**18, samples=16_384, tokens=2_097_152))

    yield timed("ledger, 10,000 steps appended", append)
    yield timed("ledger, read and accounted for", lambda: list(ledger.accounted()))


def plans(content: State, ranks: int, work: Path) -> Iterator[Row]:
    yield timed("plan of all files, ZeRO-1", lambda: zero_write.files(content, work, stage=1, world=ranks))
    yield timed("plan of all files, ZeRO-3", lambda: zero_write.files(content, work, stage=3, world=ranks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 1024])
    options = parser.parse_args()
    content, columns = state(SIZES["bert-large"]), []
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            rows = [*sampler(ranks), *manifests(ranks, work), *ledgers(work), *plans(content, ranks, work)]
            columns.append(dict(rows))
    parameters = models.architecture_of(SIZES["bert-large"]).parameters
    print(f"{parameters:,} parameters; CPU seconds at {', '.join(f'{ranks:,}' for ranks in options.ranks)} ranks")
    for name in columns[0]:
        print(f"  {name:56s}" + "".join(f"{column[name]:10.3f}" for column in columns))


if __name__ == "__main__":
    main()

"""What reshards and expansions of 7, 70 and 400 billion parameters take, projected from the rates of this machine.

    python benchmarks/projection.py --folder FOLDER           rates of FOLDER's disk and of this CPU: 5 minutes, 15 GB
    python benchmarks/projection.py --folder FOLDER --cores 64 --shared 50      64 cores a node, 50 GB/s for all nodes
    python benchmarks/projection.py --size tiny --rounds 1    a check that it runs, a minute; its rates say nothing

Measured, medians of the rounds: reading a file that is not in memory and writing one with its sync, both in GB/s; CPU
seconds of `lemon reshard` for each GB that is read twice (to hash it, and to write) and written, without its start; the
same of `lemon expand` with grown moments for each GB written, without its verification; and the seconds of that for
each billion parameters, which one process does at the end.

Projected: fp32 weights and both moments in ZeRO-3 files, 12 bytes a parameter; an expansion doubles the parameters, and
its row names the result's. A part takes its share of the longer of both: CPU seconds by the cores of a node, or bytes
by the rates of its disk, of which all nodes together get at most --shared. Memory of a process: what a reshard holds
whatever the model; of an expansion at most 36 bytes for each number of the largest tensor, which is the vocabulary's
(tests/tools/test_memory.py).
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script it sees its own folder only

from benchmarks.commands import Taken, shell, taken
from benchmarks.states import SIZES, written
from pipeline import __version__, models
from pipeline.checkpoints import CheckpointLayout

GB, BYTES = 10**9, 12
LARGER = {"tiny": "tiny-grown", "bert-base": "bert-large"}
LIBRARIES = 300 * 2**20
"""Bytes that a process holds whatever the model (tests/tools/test_memory.py)."""
MODELS = {
    "7 billion": (6.7e9, 32_000 * 4096),
    "70 billion": (69e9, 32_000 * 8192),
    "400 billion": (405e9, 128_256 * 16_384),
}
"""Parameters, and numbers of the largest tensor: Llama's shapes."""
PARTS = (1, 8, 64)


@dataclass(frozen=True)
class Rates:
    """read, write: GB/s of a node. start: seconds. reshard, grow: CPU seconds for a GB written. verify: seconds for a
    billion parameters. memory: bytes of the largest process of a reshard."""

    read: float
    write: float
    start: float
    reshard: float
    grow: float
    verify: float
    memory: float


def seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def read_cold(file: Path) -> None:
    """Every byte, from the disk."""
    with file.open("rb", buffering=0) as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        buffer = bytearray(1 << 22)
        while handle.readinto(buffer):
            pass


def write_synced(file: Path, size: int) -> None:
    block = os.urandom(1 << 22)
    with file.open("wb", buffering=0) as handle:
        for _ in range(max(1, size // len(block))):
            handle.write(block)
        os.fsync(handle.fileno())


def lemon(*arguments: object, out: Path) -> tuple[Taken, int]:
    """What a command takes, and the bytes that it writes."""
    shell("sync")
    found = taken([sys.executable, "-m", "pipeline", *map(str, arguments), "--out", str(out), "-v"])
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    shutil.rmtree(out)
    return found, size


def verified(output: str) -> float:
    """Seconds for which the models ran, as the command's log says."""
    found = re.search(r"both models ran on \d+ samples in ([\d.]+) s", output)
    assert found, output
    return float(found[1])


def disk(folder: Path, size: int) -> tuple[float, float]:
    """GB/s of reading and of writing."""
    file = folder / "block"
    writing = seconds(lambda: write_synced(file, size))
    reading = seconds(lambda: read_cold(file))
    file.unlink()
    return size / GB / reading, size / GB / writing


def measured(size: str, rounds: int, work: Path) -> Rates:
    """The median of each rate."""
    source, tiny, target, out = work / "source", work / "tiny", work / "target.json", work / "out"
    layout = CheckpointLayout("zero", 3, 2)
    written(source, SIZES[size], layout)
    written(tiny, SIZES["tiny"], layout)
    target.write_text(json.dumps(SIZES[LARGER[size]].to_dict()))
    stored = sum(path.stat().st_size for path in source.iterdir())
    large = models.architecture_of(SIZES[LARGER[size]]).parameters
    growth = "--source", source, "--target", target, "--optimizer-state", "grow", "--method-option", "depth=cancel"
    found: list[Rates] = []
    for _ in range(rounds):
        read, write = disk(work, max(stored, 1 << 24))
        start, _ = lemon("reshard", tiny, "--world-size", 3, out=out)
        moved, bytes_moved = lemon("reshard", source, "--world-size", 3, out=out)
        grown, bytes_grown = lemon("expand", *growth, out=out)
        verify = verified(grown.output)
        found.append(
            Rates(
                read,
                write,
                start.seconds,
                max(0.0, moved.cpu - start.cpu) / (bytes_moved / GB),
                max(0.0, grown.cpu - start.cpu - verify) / (bytes_grown / GB),
                verify / (large / 1e9),
                moved.memory,
            )
        )
    return Rates(*(median(getattr(each, name) for each in found) for name in Rates.__dataclass_fields__))


def projected(kind: str, parameters: float, rates: Rates, parts: int, cores: int, shared: float) -> float:
    """Seconds."""
    result = BYTES * parameters / GB
    source = result if kind == "reshard" else result / 2
    cpu = result * (rates.reshard if kind == "reshard" else rates.grow) / (cores * parts)
    most = min(parts, shared / max(rates.read, rates.write))
    moving = 2 * source / (rates.read * most) + result / (rates.write * most)
    last = 0.0 if kind == "reshard" else rates.verify * parameters / 1e9
    return rates.start + max(cpu, moving) + last


def words(time_taken: float) -> str:
    if time_taken < 100:
        return f"{time_taken:.0f} s"
    return f"{time_taken / 60:.0f} min" if time_taken < 6000 else f"{time_taken / 3600:.1f} h"


def show(rates: Rates, cores: int, shared: float) -> None:
    print(
        f"lemon {__version__}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; read {rates.read:.2f} GB/s, write "
        f"{rates.write:.2f} GB/s, start {rates.start:.1f} s; CPU seconds a GB: reshard {rates.reshard:.2f}, expand "
        f"{rates.grow:.2f}; verification {rates.verify:.1f} s a billion parameters"
    )
    every = f"{shared:g} GB/s for all of them" if shared != float("inf") else "each with this disk's rates"
    print(f"projected for nodes of {cores} cores, {every}")
    heads = "".join(f" {f'{parts} part' + 's' * (parts > 1):>9s} |" for parts in PARTS)
    print(f"| {'':21s} | {'read':>8s} | {'written':>8s} |{heads} {'a process holds':>15s} |")
    print(f"|{'-' * 23}|{'-' * 10}|{'-' * 10}|{('-' * 11 + '|') * len(PARTS)}{'-' * 17}|")
    for kind in ("reshard", "expand"):
        for name, (parameters, largest) in MODELS.items():
            result = BYTES * parameters / GB
            source = result if kind == "reshard" else result / 2
            times = [words(projected(kind, parameters, rates, parts, cores, shared)) for parts in PARTS]
            holds = rates.memory if kind == "reshard" else 3 * BYTES * largest + LIBRARIES
            cells = "".join(f" {each:>9s} |" for each in times)
            label = f"{kind}, {name}"
            memory = f"{holds / 2**30:.1f} GiB"
            print(f"| {label:21s} | {2 * source / 1000:5.2f} TB | {result / 1000:5.2f} TB |{cells} {memory:>15s} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="bert-base", choices=LARGER)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="of a node (default: this one's)")
    parser.add_argument("--shared", type=float, default=float("inf"), help="GB/s that all nodes get together")
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: the system's temporary folder)")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        rates = measured(options.size, options.rounds, work)
    finally:
        shutil.rmtree(work)
    show(rates, options.cores, options.shared)


if __name__ == "__main__":
    main()

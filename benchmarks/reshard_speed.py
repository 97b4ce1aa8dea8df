"""Resharding against `ds_to_universal.py`, `zero_to_fp32.py`, plain `cp`, and the floor, all in one run.

    python benchmarks/reshard_speed.py                   BERT-large's size, stages 2 and 3: 8 minutes, 20 GB of disk
    python benchmarks/reshard_speed.py --size 1.3b       1.3 billion parameters: half an hour, 65 GB of disk
    python benchmarks/reshard_speed.py --size 1.3b --stage 3 --expand      to 2.1 billion: 10 minutes, 70 GB of disk
    python benchmarks/reshard_speed.py --size tiny --rounds 1              a check that it runs, a minute

World size 2 to world size 3 of the same stage. In each round every side does it once, in turn; printed are medians with
the smallest and the largest, and ratios of the same round: how many times as long `ds_to_universal.py` takes, by the
clock and in seconds of CPUs, which other work on the machine changes less. The floor: `cp` and `sync` of the input's
bytes, and BLAKE3 of the input and of as many output bytes by two processes: no tool that copies, syncs and hashes
everything one after the other can be faster. Every side finds the source in the page cache as the side before left it,
and a disk that has written all (`sync`); memory is the largest anonymous memory (RssAnon) of any process of a side.
`--expand` times an expansion from shards to shards with grown moments instead.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script it sees its own folder only

import deepspeed
import torch

from benchmarks.commands import Taken, shell, spread, taken
from benchmarks.states import SIZES, written
from pipeline import __version__, models
from pipeline.checkpoints import CheckpointLayout

FLOOR, THEIRS = "floor", "ds_to_universal.py"
Measured = dict[str, list[Taken]]
"""By side, one for each round."""
ROW = "  {:28s} {:>22s} {:>24s} {:>22s} {:>24s} {:>10s} {:>6}"


def sizes_of_files(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


def hashing(folders: list[Path]) -> str:
    """A command that hashes all files in two processes."""
    content = "import sys; from blake3 import blake3; b = blake3(); f = open(sys.argv[1], 'rb', 0)"
    loop = "d = memoryview(bytearray(1 << 19))\nwhile n := f.readinto(d): b.update(d[:n])"
    digest = shlex.quote(f"{content}\n{loop}")
    return f"find {shlex.join(map(str, folders))} -type f -print0 | xargs -0 -n 1 -P 2 {sys.executable} -c {digest}"


def reshard_commands(source: Path, stage: int, out: Path) -> dict[str, list[str]]:
    """Each side's command, which writes to `out`."""
    reshard = f"-m pipeline reshard {source} --out {out} --zero-stage {stage} --world-size 3"
    universal = (
        "-m deepspeed.checkpoint.ds_to_universal --inject_missing_state --num_merge_workers 2 --num_extract_workers 2 "
        f"--input_folder {source} --output_folder {out}"
    )
    return {
        "cp": ["cp", "-r", str(source), str(out)],
        "lemon reshard": [sys.executable, *reshard.split()],
        "lemon reshard --hash sha256": [sys.executable, *reshard.split(), "--hash", "sha256"],
        "zero_to_fp32.py": [sys.executable, "-m", "deepspeed.utils.zero_to_fp32", str(source.parent), str(out)],
        THEIRS: [sys.executable, *universal.split()],
    }


def floor(source: Path, out: Path, copied: Path) -> dict[str, Taken]:
    """`cp` and `sync` of `copied`, and BLAKE3 of `source` and of `out`."""
    copying, digests = shell(f"cp -r {copied} {copied}.copy; sync"), shell(hashing([source, out]))
    shutil.rmtree(f"{copied}.copy")
    return {FLOOR: copying + digests, "  of which BLAKE3": digests}


def compare(size: str, stage: int, rounds: int, work: Path) -> tuple[Measured, dict[str, int]]:
    """What every side takes, and how many files it writes."""
    source, out = work / "source" / "step", work / "out"
    written(source, SIZES[size], CheckpointLayout("zero", stage, 2))
    (work / "source" / "latest").write_text("step")
    measured: Measured = {}
    files: dict[str, int] = {}
    for _ in range(rounds):
        shutil.copytree(source, out)
        shell("sync")
        for name, each in floor(source, out, copied=source).items():
            measured.setdefault(name, []).append(each)
        shutil.rmtree(out)
        for name, command in reshard_commands(source, stage, out).items():
            shell("sync")
            measured.setdefault(name, []).append(taken(command))
            files[name] = len(sizes_of_files(out))
            shutil.rmtree(out)
    return measured, files


def expansion(size: str, stage: int, rounds: int, work: Path) -> tuple[Measured, dict[str, int]]:
    """Expanding shards to shards, moments grown, verification included, against the floor for its bytes."""
    larger = {"tiny": "tiny-grown", "1.3b": "2.1b"}[size]
    source, target, out = work / "source" / "step", work / "target.json", work / "out"
    written(source, SIZES[size], CheckpointLayout("zero", stage, 2))
    target.write_text(json.dumps(SIZES[larger].to_dict()))
    command = f"-m pipeline expand --source {source} --target {target} --out {out}"
    options = f"--zero-stage {stage} --world-size 2 --optimizer-state grow --method-option depth=cancel"
    measured: Measured = {}
    for _ in range(rounds):
        shell("sync")
        expanded = taken([sys.executable, *command.split(), *options.split()])
        sizes = sizes_of_files(out)
        for name, each in {**floor(source, out, copied=out), "lemon expand": expanded}.items():
            measured.setdefault(name, []).append(each)
        shutil.rmtree(out)
    before, after = (models.architecture_of(SIZES[name]).parameters for name in (size, larger))
    print(f"{before:,} -> {after:,} parameters, {sum(sizes) / 2**30:.1f} GiB written")
    return measured, {"lemon expand": len(sizes)}


def show(size: str, stage: int, measured: Measured, files: dict[str, int]) -> None:
    parameters = models.architecture_of(SIZES[size]).parameters
    print(
        f"{size}, ZeRO-{stage}, world size 2, {parameters:,} parameters; {len(measured[FLOOR])} rounds; torch "
        f"{torch.__version__}, deepspeed {deepspeed.__version__}, lemon {__version__}, {os.cpu_count()} CPUs, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    other = THEIRS if THEIRS in measured else FLOOR
    against = measured[other]
    print(f"times: {other} takes so many times as long, and as many CPU seconds")
    heads = ("seconds", "times", "CPU seconds", "times", "RssAnon", "files")
    print(ROW.format("", *heads))
    for name, rounds in measured.items():
        walls, cpus = [each.seconds for each in rounds], [each.cpu for each in rounds]
        faster = [theirs.seconds / ours.seconds for theirs, ours in zip(against, rounds, strict=True)]
        cheaper = [theirs.cpu / ours.cpu for theirs, ours in zip(against, rounds, strict=True)]
        memory = f"{median(each.memory for each in rounds) / 2**20:.0f} MiB"
        numbers = spread(walls), spread(faster, 2), spread(cpus), spread(cheaper, 2)
        print(ROW.format(name, *numbers, memory, files.get(name, "–")), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="bert-large", choices=["tiny", "bert-large", "1.3b"])
    parser.add_argument("--stage", type=int, choices=[2, 3], help="default: both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--expand", action="store_true", help="time an expansion (tiny or 1.3b)")
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    options = parser.parse_args()
    for stage in [options.stage] if options.stage else [2, 3]:
        work = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            measure = expansion if options.expand else compare
            show(options.size, stage, *measure(options.size, stage, options.rounds, work))
        finally:
            shutil.rmtree(work)


if __name__ == "__main__":
    main()

"""Resharding against `ds_to_universal.py`, `zero_to_fp32.py`, plain `cp`, and the floor, all in one run.

    python benchmarks/reshard_speed.py                         BERT-large's size, stages 2 and 3: 2 minutes, 20 GB of disk
    python benchmarks/reshard_speed.py --size 1.3b             1.3 billion parameters: 9 minutes, 65 GB of disk
    python benchmarks/reshard_speed.py --size 1.3b --stage 3 --expand      to 2.1 billion: 4 minutes, 70 GB of disk
    python benchmarks/reshard_speed.py --size tiny             a check that it runs

World size 2 to world size 3 of the same stage. The floor: `cp` and `sync` of the input's bytes, and SHA-256 of the input
and of as many output bytes by two processes, which is what a tool that moves, syncs and hashes everything cannot beat.
Every side starts with the source in the page cache as the side before left it; memory is the largest anonymous memory
(RssAnon) of any process of ours. `--expand` times an expansion from shards to shards with grown moments instead.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script it sees its own folder only

import deepspeed
import torch

from benchmarks.states import SIZES, written
from pipeline import __version__, models
from pipeline.checkpoints import CheckpointLayout

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"}


def anonymous(root: int) -> int:
    """The largest RssAnon, in bytes, of the process `root` and what it started."""
    parents, sizes = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            parents[int(fields["Pid"])], sizes[int(fields["Pid"])] = (
                int(fields["PPid"]),
                int(fields.get("RssAnon", "0").split()[0]) * 1024,
            )
        except OSError:
            continue  # it ended while we looked
    mine = {root}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return max((sizes.get(pid, 0) for pid in mine), default=0)


def timed(command: list[str], **options) -> tuple[float, int]:
    """Seconds and largest RssAnon of a command. Raises when it fails."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], anonymous(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{output[-3000:]}")
    return time.perf_counter() - begun, peak[0]


def shell(text: str) -> tuple[float, int]:
    return timed(["bash", "-c", f"set -e; {text}"])


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def hashing(folders: list[Path]) -> str:
    """Two processes, with the library that Python has: coreutils' sha256sum does without the CPU's instructions for it."""
    one = "import hashlib, sys; hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256')"
    return f"find {' '.join(map(str, folders))} -type f -print0 | xargs -0 -n 1 -P 2 {sys.executable} -c {shlex.quote(one)}"


def compare(size: str, stage: int, work: Path) -> list[tuple[str, float, int, int]]:
    """(side, seconds, RssAnon, files written) of every side."""
    source, lemon = (
        written(work / "source" / "step", SIZES[size], CheckpointLayout("zero", stage, 2)),
        [sys.executable, "-m", "pipeline"],
    )
    (work / "source" / "latest").write_text("step")
    sides = {
        "cp": (["cp", "-r", str(source), str(work / "out")], work / "out"),
        "lemon reshard": (
            [
                *lemon,
                "reshard",
                str(source),
                "--out",
                str(work / "out"),
                "--zero-stage",
                str(stage),
                "--world-size",
                "3",
            ],
            work / "out",
        ),
        "zero_to_fp32.py": (
            [sys.executable, "-m", "deepspeed.utils.zero_to_fp32", str(source.parent), str(work / "out")],
            work / "out",
        ),
        "ds_to_universal.py": (
            [
                sys.executable,
                "-m",
                "deepspeed.checkpoint.ds_to_universal",
                "--inject_missing_state",
                "--num_merge_workers",
                "2",
                "--num_extract_workers",
                "2",
                "--input_folder",
                str(source),
                "--output_folder",
                str(work / "out"),
            ],
            work / "out",
        ),
    }
    rows = []
    copied = shell(f"cp -r {source} {work / 'out'}; sync")[0]
    hashed = shell(hashing([source, work / "out"]))[0]
    rows += [("floor: cp + sync + sha256 of both", copied + hashed, 0, 0), ("of which sha256", hashed, 0, 0)]
    shutil.rmtree(work / "out")
    for name, (command, out) in sides.items():
        seconds, peak = timed(command)
        rows.append((name, seconds, peak, sum(1 for path in out.rglob("*") if path.is_file())))
        shutil.rmtree(out)
    return rows


def expansion(size: str, stage: int, work: Path) -> list[tuple[str, float, int, int]]:
    """Expanding shards to shards, moments grown, verification included, against the floor for its bytes."""
    import json

    target = {"tiny": "tiny-grown", "1.3b": "2.1b"}[size]
    source = written(work / "source" / "step", SIZES[size], CheckpointLayout("zero", stage, 2))
    (work / "target.json").write_text(json.dumps(SIZES[target].to_dict()))
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "expand",
        "--source",
        str(source),
        "--target",
        str(work / "target.json"),
        "--out",
        str(work / "out"),
        "--zero-stage",
        str(stage),
        "--world-size",
        "2",
        "--optimizer-state",
        "grow",
        "--method-option",
        "depth=cancel",
    ]
    seconds, peak = timed(command)
    rows = [("lemon expand", seconds, peak, sum(1 for path in (work / "out").rglob("*") if path.is_file()))]
    hashed = shell(hashing([source, work / "out"]))[0]
    copied = shell(f"cp -r {work / 'out'} {work / 'copy'}; sync")[0]
    print(
        f"{models.architecture_of(SIZES[size]).parameters:,} -> {models.architecture_of(SIZES[target]).parameters:,} parameters, {total(work / 'out') / 2**30:.1f} GiB written"
    )
    return [
        ("floor: cp + sync of the result, sha256 of both", copied + hashed, 0, 0),
        ("of which sha256", hashed, 0, 0),
        *rows,
    ]


def show(size: str, stage: int, rows: list[tuple[str, float, int, int]]) -> None:
    floor = rows[0][1]
    print(
        f"{size}, ZeRO-{stage}, world size 2, {models.architecture_of(SIZES[size]).parameters:,} parameters; torch {torch.__version__}, "
        f"deepspeed {deepspeed.__version__}, lemon {__version__}, {os.cpu_count()} CPUs"
    )
    for name, seconds, peak, files in rows:
        print(
            f"  {name:48s} {seconds:8.1f} s {seconds / floor:7.2f} x floor   RssAnon {peak / 2**20:7.0f} MiB   {files or '':>6} files",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="bert-large", choices=["tiny", "bert-large", "1.3b"])
    parser.add_argument("--stage", type=int, choices=[2, 3], help="default: both")
    parser.add_argument("--expand", action="store_true", help="time an expansion (tiny or 1.3b)")
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    options = parser.parse_args()
    for stage in [options.stage] if options.stage else [2, 3]:
        work = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            show(options.size, stage, (expansion if options.expand else compare)(options.size, stage, work))
        finally:
            shutil.rmtree(work)


if __name__ == "__main__":
    main()

"""Resharding against `ds_to_universal.py`, `zero_to_fp32.py`, plain `cp`, and the floor, all in one run.

    python benchmarks/reshard_speed.py                   BERT-large's size, stages 2 and 3: 2 minutes, 20 GB of disk
    python benchmarks/reshard_speed.py --size 1.3b       1.3 billion parameters: 9 minutes, 65 GB of disk
    python benchmarks/reshard_speed.py --size 1.3b --stage 3 --expand      to 2.1 billion: 4 minutes, 70 GB of disk
    python benchmarks/reshard_speed.py --size tiny       a check that it runs, a minute

World size 2 to world size 3 of the same stage. The floor: `cp` and `sync` of the input's bytes, and SHA-256 of the
input and of as many output bytes by two processes: no tool that copies, syncs and hashes everything can be faster.
Every side finds the source in the page cache as the side before left it; memory is the largest anonymous memory
(RssAnon) of any process of a side. `--expand` times an expansion from shards to shards with grown moments instead.
"""

import argparse
import json
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

from benchmarks.memory import anonymous
from benchmarks.states import SIZES, written
from pipeline import __version__, models
from pipeline.checkpoints import CheckpointLayout

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"}


def timed(command: list[str]) -> tuple[float, int]:
    """Seconds and largest RssAnon, in bytes, of a command. Raises SystemExit with its output when it fails."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
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


def sizes_of_files(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


def hashing(folders: list[Path]) -> str:
    """A command that hashes all files in two processes by hashlib, which uses the CPU's SHA instructions; coreutils'
    sha256sum does not."""
    digest = shlex.quote("import hashlib, sys; hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256')")
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
        "zero_to_fp32.py": [sys.executable, "-m", "deepspeed.utils.zero_to_fp32", str(source.parent), str(out)],
        "ds_to_universal.py": [sys.executable, *universal.split()],
    }


def floor(source: Path, out: Path, copied: Path) -> list[tuple[str, float, int, int]]:
    """The seconds of `cp` and `sync` of `copied`, and of SHA-256 of `source` and of `out`."""
    copy_seconds = shell(f"cp -r {copied} {copied}.copy; sync")[0]
    hash_seconds = shell(hashing([source, out]))[0]
    shutil.rmtree(f"{copied}.copy")
    return [
        (f"floor: cp + sync of the {copied.name}, sha256 of both", copy_seconds + hash_seconds, 0, 0),
        ("of which sha256", hash_seconds, 0, 0),
    ]


def compare(size: str, stage: int, work: Path) -> list[tuple[str, float, int, int]]:
    """(side, seconds, RssAnon in bytes, files written) of every side."""
    source, out = work / "source" / "step", work / "out"
    written(source, SIZES[size], CheckpointLayout("zero", stage, 2))
    (work / "source" / "latest").write_text("step")
    shutil.copytree(source, out)
    rows = floor(source, out, copied=source)
    shutil.rmtree(out)
    for name, command in reshard_commands(source, stage, out).items():
        seconds, peak = timed(command)
        rows.append((name, seconds, peak, len(sizes_of_files(out))))
        shutil.rmtree(out)
    return rows


def expansion(size: str, stage: int, work: Path) -> list[tuple[str, float, int, int]]:
    """Expanding shards to shards, moments grown, verification included, against the floor for its bytes."""
    larger = {"tiny": "tiny-grown", "1.3b": "2.1b"}[size]
    source, target, out = work / "source" / "step", work / "target.json", work / "out"
    written(source, SIZES[size], CheckpointLayout("zero", stage, 2))
    target.write_text(json.dumps(SIZES[larger].to_dict()))
    command = f"-m pipeline expand --source {source} --target {target} --out {out}"
    options = f"--zero-stage {stage} --world-size 2 --optimizer-state grow --method-option depth=cancel"
    seconds, peak = timed([sys.executable, *command.split(), *options.split()])
    sizes = sizes_of_files(out)
    before, after = (models.architecture_of(SIZES[name]).parameters for name in (size, larger))
    print(f"{before:,} -> {after:,} parameters, {sum(sizes) / 2**30:.1f} GiB written")
    return [*floor(source, out, copied=out), ("lemon expand", seconds, peak, len(sizes))]


def show(size: str, stage: int, rows: list[tuple[str, float, int, int]]) -> None:
    parameters, fastest = models.architecture_of(SIZES[size]).parameters, rows[0][1]
    print(
        f"{size}, ZeRO-{stage}, world size 2, {parameters:,} parameters; torch {torch.__version__}, "
        f"deepspeed {deepspeed.__version__}, lemon {__version__}, {os.cpu_count()} CPUs"
    )
    for name, seconds, peak, files in rows:
        times, memory = f"{seconds:8.1f} s {seconds / fastest:7.2f} x floor", f"RssAnon {peak / 2**20:7.0f} MiB"
        print(f"  {name:48s} {times}   {memory}   {files or '–':>6} files", flush=True)


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

"""The goodput of a training that loses a worker every few minutes: steps that count, as a share of the wall clock.

    python benchmarks/goodput.py                                  a fault in 10 minutes, saves each 60 and 15 s: an hour
    python benchmarks/goodput.py --minutes 4 --fault 2 --save 15  a check that it runs

The small model of the BERT quick start on 2 ranks, `restarts` in its config, starts itself again after each kill. A
run ends by `max_time`; the rows are those of its report. Kills come at seeded moments, one in each interval.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script it sees its own folder only
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import psutil
import yaml

from pipeline.accounting.wall_time import WallTime, wall_time
from pipeline.records.run_folder import StageFolder
from pipeline.training.preemption import REQUEUE

ROOT = Path(__file__).resolve().parent.parent
QUICK_START = ROOT / "configs" / "quickstart" / "bert.yaml"
NEVER = "100000000 steps"


def config(folder: Path, minutes: float, save_every: str) -> Path:
    """That of a run in `folder` which ends after so many minutes."""
    content = yaml.safe_load(QUICK_START.read_text(encoding="utf-8"))
    stage = content["stages"][0] | {"save_every": save_every, "evaluate_every": NEVER}
    stage["schedule"] |= {"horizon": NEVER, "warmup": "20 steps"}
    content |= {"folder": str(folder / "run"), "processes": 2, "stages": [stage], "restarts": 1}
    content |= {"max_time": f"{round(60 * minutes)} seconds", "hang": {"pause": "5 minutes"}}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def trained(path: Path, faults: list[float]) -> StageFolder:
    """The stage of a run whose workers were killed at these seconds. Raises RuntimeError where it ends otherwise than
    by its time."""
    content, begun = yaml.safe_load(path.read_text(encoding="utf-8")), time.monotonic()
    command = subprocess.Popen([sys.executable, "-m", "pipeline", "run", "-q", str(path)], cwd=ROOT)
    for moment in faults:
        time.sleep(max(0.0, begun + moment - time.monotonic()))
        os.kill(workers(command.pid)[-1], signal.SIGKILL)
    if command.wait() != REQUEUE:
        raise RuntimeError(f"the run ended with exit code {command.returncode}")
    return StageFolder(Path(content["folder"]) / content["stages"][0]["name"])


def workers(parent: int) -> list[int]:
    """Process ids of the workers that a command has now, as soon as there are any."""
    while True:
        found = [child.pid for child in psutil.Process(parent).children() if os.getsid(child.pid) == child.pid]
        if found:
            return sorted(found)
        time.sleep(0.1)


def seconds_per_step(folder: Path) -> float:
    """Of an undisturbed run of a minute."""
    stage = trained(config(folder, 1.0, NEVER), [])
    records = [record for record in stage.metrics if record.kind == "train"]
    return records[-1].seconds


def shown(save: float, found: WallTime) -> str:
    rows = ", ".join(f"{kind} {seconds:.1f}" for kind, seconds in found.rows.items() if seconds >= 0.05)
    whole = f"{found.goodput:.1%} of {found.seconds:.0f} s in {found.starts} starts"
    return f"a save every {save:.0f} s: goodput {whole} ({rows})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="that each run lasts (default 30)")
    parser.add_argument("--fault", type=float, default=10, help="minutes in which one worker is killed (default 10)")
    parser.add_argument("--save", type=float, nargs="+", default=[60, 15], help="seconds between saves (default 60 15)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments, count = random.Random(options.seed), int(options.minutes // options.fault)
    faults = [60 * options.fault * (number + moments.uniform(0.3, 0.9)) for number in range(count)]
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / name for name in ("pace", *map(str, options.save))]
        for folder in folders:
            folder.mkdir()
        step = seconds_per_step(folders[0])
        print(f"{step:.3f} s a step; kills at {', '.join(f'{moment:.0f}' for moment in faults)} s", flush=True)
        for folder, save in zip(folders[1:], options.save, strict=True):
            path = config(folder, options.minutes, f"{max(1, round(save / step))} steps")
            stage = trained(path, faults)
            if told := wall_time(stage.path.name, stage.times):
                print(shown(save, told), flush=True)


if __name__ == "__main__":
    main()

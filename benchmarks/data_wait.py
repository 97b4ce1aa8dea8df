"""For how much of a step of image training the device waits for its samples, by the number of loader workers.

    python benchmarks/data_wait.py                          on a GPU: ViT-B/16, bf16, 128 images of 224, 0 to 16 workers
    python benchmarks/data_wait.py --before ../elsewhere    beside another checkout of this project, in turns
    python benchmarks/data_wait.py --workers 0 1 --layers 2 --hidden 64 --batch 16 --steps 12    a check, on a CPU

JPEG files of 500 x 375 pixels and about 100 KB, as ImageNet's are, are cropped, resized, augmented as DeiT's
(`augment: deit`) and trained on with one worker process. What is told comes from the run's own times.jsonl, without its
first steps: on a GPU, `data` is the time for which it had nothing to do because its samples were not there, and that of
augmenting them. Rounds take turns; printed are medians.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script it sees its own folder only

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import torch
import yaml

from pipeline.records.run_folder import StageFolder
from pipeline.records.time_records import STEPPING, SpentRecord

HERE = Path(__file__).resolve().parent.parent
IMAGES, WIDE, HIGH, CLASSES = 1024, 500, 375, 10


@dataclass(frozen=True)
class Waited:
    """seconds: of a step; share: of it, for data."""

    seconds: float
    share: float


def write_images(path: Path) -> None:
    """Soft shapes and some noise, which JPEG packs as it does photographs."""
    draws = np.random.Generator(np.random.Philox(key=0))
    rows: list[bytes] = []
    for _ in range(IMAGES):
        shapes = PIL.Image.fromarray(draws.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        picture = np.asarray(shapes.resize((WIDE, HIGH), PIL.Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = np.clip(picture + draws.integers(-18, 19, picture.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(noisy).save(file, "jpeg", quality=90)
        rows.append(file.getvalue())
    labels = [number % CLASSES for number in range(IMAGES)]
    images = [{"bytes": row, "path": None} for row in rows]
    pyarrow.parquet.write_table(pa.table({"image": images, "label": labels}), path)
    print(f"{IMAGES} images, {sum(map(len, rows)) / IMAGES / 1e3:.0f} KB each", flush=True)


def config(folder: Path, side: str, chosen: argparse.Namespace, workers: int) -> Path:
    """That of a run of one side, on what it has prepared in `folder` before."""
    never, sizes = "1000000 steps", {"layers": chosen.layers, "hidden": chosen.hidden, "patch": 16}
    steps = f"{chosen.steps} steps"
    stage = {
        "kind": "train",
        "name": "vit",
        "model": "vit",
        "batch": chosen.batch,
        "precision": chosen.precision,
        "schedule": {"kind": "constant", "peak": 1e-4, "warmup": "0 steps", "horizon": steps},
        "log_every": 1,
        "evaluate_every": never,
        "save_every": never,
        "save": "blocking",
    }
    images = {"kind": "images", "dataset": str(folder / "images.parquet"), "size": chosen.size, "augment": "deit"}
    content = {
        "name": "data-wait",
        "folder": str(folder / side),
        "processes": 1,
        "data": {**images, "evaluation_images": 16, "workers": workers},
        "models": {"vit": {"family": "vit", "heads": max(1, chosen.hidden // 64), **sizes}},
        "stages": [stage],
    }
    path = folder / f"{side}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def measured(package: Path, path: Path, first: int) -> Waited:
    """One run by the code of a checkout. first: steps that do not count."""
    stage = StageFolder(Path(yaml.safe_load(path.read_text(encoding="utf-8"))["folder"]) / "vit")
    shutil.rmtree(stage.path, ignore_errors=True)
    command = [sys.executable, "-m", "pipeline", "train", "-q", str(path), "--stage", "vit"]
    subprocess.run(command, cwd=package, env={**os.environ, "PYTHONPATH": str(package)}, check=True)
    spent = [record for record in stage.times if isinstance(record, SpentRecord) and record.step > first]
    seconds = {kind: sum(record.seconds.get(kind, 0.0) for record in spent) for kind in (*STEPPING, "other")}
    whole = sum(seconds.values())
    return Waited(whole / len({record.step for record in spent}), seconds["data"] / whole)


def table(sides: dict[str, Path], folder: Path, chosen: argparse.Namespace) -> None:
    for workers in chosen.workers:
        rounds: dict[str, list[Waited]] = {name: [] for name in sides}
        for _ in range(chosen.rounds):
            for name, package in sides.items():
                path = config(folder, name, chosen, workers)
                rounds[name].append(measured(package, path, chosen.steps // 4))
        for name, waited in rounds.items():
            seconds, share = median(each.seconds for each in waited), median(each.share for each in waited)
            speed = chosen.batch / seconds
            told = f"{seconds:.3f} s a step, {speed:,.0f} images/s, {100 * share:.1f} % of it for data"
            print(f"{workers:3} workers, {name:6}: {told}", flush=True)
        if len(rounds) == 2:
            before, now = (median(each.seconds for each in rounds[name]) for name in ("before", "now"))
            print(f"{workers:3} workers: {before / now:.2f} times as fast as before", flush=True)


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 4, 8, 16] if cuda else [0, 1])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--batch", type=int, default=128 if cuda else 16)
    parser.add_argument("--steps", type=int, default=80 if cuda else 12)
    parser.add_argument("--precision", default="bf16" if cuda else "fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="another checkout")
    chosen = parser.parse_args()
    device = torch.cuda.get_device_name() if cuda else "CPU"
    print(f"{device}, {len(os.sched_getaffinity(0))} CPUs, torch {torch.__version__}", flush=True)
    sides = {"before": chosen.before.resolve()} if chosen.before else {}
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "images.parquet")
        table({**sides, "now": HERE}, Path(folder), chosen)


if __name__ == "__main__":
    main()

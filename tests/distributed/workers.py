"""Start a script in several real processes, as torchrun does."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}


def torchrun(script: str, job: dict, world: int) -> None:
    """Run `script` of this folder with `job` as JSON in `world` processes; its output is shown when it fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world), str(HERE / script), json.dumps(job)]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(HERE.parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd=HERE.parent.parent)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def train(tmp: Path, *, stage: int, world: int, first: int, steps: int, load: Path | None = None, again: Path | None = None,
          save: Path | None = None, **more) -> list[float]:
    """The losses of `plain_deepspeed.py` on `world` ranks."""
    places = {name: {"dir": str(path.parent), "tag": path.name} for name, path in (("load", load), ("again", again), ("save", save)) if path}
    out = tmp / f"losses-{stage}-{world}-{first}.json"
    torchrun("plain_deepspeed.py", {"stage": stage, "first": first, "steps": steps, "seed": 3 + first, "out": str(out), **places, **more}, world)
    return json.loads(out.read_text())

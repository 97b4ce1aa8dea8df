"""In which number formats this machine's devices can train."""

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch
from deepspeed.accelerator import get_accelerator

from pipeline.config.schema import TrainStage
from pipeline.errors import RESUME, FaultError, UserError
from pipeline.records.processes import Helpers, be_a_helper


def supported_precisions() -> set[str]:
    """The values of `precision` that DeepSpeed can train in on this machine's devices, as its accelerator says."""
    found = half_precisions()
    return {"fp32"} | ({"bf16", "bf16-autocast"} if found["bf16"] else set()) | ({"fp16"} if found["fp16"] else set())


def half_precisions() -> dict[str, bool]:
    """What DeepSpeed's accelerator says of 16-bit formats."""
    accelerator = get_accelerator()
    return {"bf16": bool(accelerator.is_bf16_supported()), "fp16": bool(accelerator.is_fp16_supported())}


def precisions_of_workers() -> set[str]:
    """`supported_precisions`, asked in a child process: asking takes up memory of the GPU, and the process that starts
    the workers lives as long as they do. Raises FaultError where the child is killed."""
    try:
        return _asked_of_another() if torch.cuda.is_available() else _asked_of_a_fork()
    except (BrokenProcessPool, subprocess.CalledProcessError) as error:
        raise FaultError(
            f"the process that asks this machine's devices for their precisions was killed (out of memory?){RESUME}"
        ) from error


def _asked_of_a_fork() -> set[str]:
    with ProcessPoolExecutor(1, Helpers(), initializer=be_a_helper, initargs=(os.getpid(),)) as pool:
        return pool.submit(supported_precisions).result()


def _asked_of_another() -> set[str]:
    """By a Python of its own: CUDA cannot begin in a fork once it has in this process, and what multiprocessing spawns
    runs the caller's script once more."""
    ask = f"from {__name__} import tell_precisions; tell_precisions({os.getpid()})"
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", ask], stdout=subprocess.PIPE, text=True, check=True, env=paths)
    return set(done.stdout.splitlines()[-1].split())


def tell_precisions(parent: int) -> None:
    """Print `supported_precisions`, for the process that waits for them."""
    be_a_helper(parent)
    print(*supported_precisions())


def require_precision(stage: TrainStage, supported: set[str]) -> None:
    """Raises UserError when `stage` is to be trained in a precision that is not among the supported ones."""
    if stage.precision not in supported:
        device = get_accelerator().device_name()
        raise UserError(
            f"stages.{stage.name}.precision: {stage.precision} is not supported by this machine's {device} devices; "
            f"choose {' or '.join(sorted(supported))}"
        )

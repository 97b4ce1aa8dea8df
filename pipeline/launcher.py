"""Starting workers: torch's elastic agent inside this process, one worker per GPU or N CPU processes.

A worker dies with its parent (the kernel sends SIGKILL), one that fails takes the others down, and its message
comes back as ours. On several nodes every node runs the same command with its own --node-rank (static rendezvous).
"""

import ctypes
import logging
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from pipeline import folders
from pipeline.errors import UserError

PARENT, FAILURE = "LEMON_PARENT_PID", "LEMON_FAILURE_FOLDER"


@dataclass(frozen=True)
class Nodes:
    """This node among all. `address` and `port`: where node 0 listens."""

    count: int = 1
    rank: int = 0
    address: str = "127.0.0.1"
    port: int = 29500


def processes(wanted: int | str) -> int:
    """Workers on this node: as configured, else one per GPU, else 2."""
    if wanted != "auto":
        return int(wanted)
    import torch

    return torch.cuda.device_count() or 2


def is_worker() -> bool:
    """Whether a launcher (ours, torchrun, Slurm's) started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(arguments: list[str], workers: int, nodes: Nodes, folder: Path) -> None:
    """Run `python -m pipeline ARGUMENTS` in `workers` processes here and wait. Raises UserError when one fails."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    failures = folder / ".failures"
    failures.mkdir(parents=True, exist_ok=True)
    for old in failures.iterdir():
        old.unlink()
    os.environ |= {PARENT: str(os.getpid()), FAILURE: str(failures.resolve()), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    single = nodes.count == 1
    config = LaunchConfig(
        min_nodes=nodes.count, max_nodes=nodes.count, nproc_per_node=workers, run_id="lemon", max_restarts=0, monitor_interval=0.2,
        rdzv_backend="c10d" if single else "static", rdzv_endpoint="127.0.0.1:0" if single else f"{nodes.address}:{nodes.port}",
        rdzv_configs={} if single else {"rank": nodes.rank}, local_addr="127.0.0.1" if single else None, logs_specs=DefaultLogsSpecs(),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "pipeline", *arguments)
    except ChildFailedError as error:
        raise UserError(_message(failures, error)) from error


def _message(failures: Path, error: Exception) -> str:
    """The first failed worker's own words, else what the agent saw (a signal, an exit code)."""
    told = sorted(failures.iterdir(), key=lambda path: path.stat().st_mtime)
    if told:
        message, _, trace = told[0].read_text(encoding="utf-8").partition("\n")
        return f"{message}; traceback in {told[0]}" if trace else message
    rank, first = error.get_first_failure()  # type: ignore[attr-defined]
    how = signal.Signals(-first.exitcode).name if first.exitcode < 0 else f"exit code {first.exitcode}"
    return f"worker {rank} died ({how}) without a message; run the command again to resume"


def become_worker(folder: Path) -> object:
    """First thing in a worker: die with the parent, and hold the run folder. Keep the returned file open."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if (parent := os.environ.get(PARENT)) and os.getppid() != int(parent):
        sys.exit(1)  # it died before we asked
    return folders.share(folder, int(os.environ.get("GROUP_RANK", "0")))


def tell_failure(error: BaseException) -> None:
    """Leave a worker's message (and, when the fault is ours, its traceback) where the parent finds it, and go at once:
    peers that wait for this worker must not delay the news."""
    if folder := os.environ.get(FAILURE):
        rank, known = os.environ["RANK"], isinstance(error, UserError)
        text = f"{error}\n" if known else f"worker {rank} failed: {type(error).__name__}: {error}".replace("\n", " ") + "\n" + traceback.format_exc()
        (Path(folder) / f"rank-{rank}.txt").write_text(text, encoding="utf-8")
        os._exit(2 if known else 1)

"""Starting workers: torch's elastic agent inside this process, one worker per GPU or N CPU processes.

A worker dies with its parent (the kernel sends SIGKILL), one that fails takes the others down, and its message
comes back as ours. On several nodes every node runs the same command with its own --node-rank (static rendezvous).
"""

import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.records import run_folder
from pipeline.records.processes import die_with_parent

PARENT, FAILURE = "LEMON_PARENT_PID", "LEMON_FAILURE_FOLDER"


@dataclass(frozen=True)
class Nodes:
    """This node among all. `address` and `port`: where node 0 listens. Raises UserError for an impossible rank."""

    count: int = 1
    rank: int = 0
    address: str = "127.0.0.1"
    port: int = 29500

    def __post_init__(self):
        if not 0 <= self.rank < self.count:
            raise UserError(f"--node-rank {self.rank} of --nodes {self.count}: ranks count from 0 to {self.count - 1}")


def processes(wanted: int | str) -> int:
    """Workers on this node: as configured, else one per GPU, else 2. Raises UserError for more than there are GPUs."""
    import torch

    gpus = torch.cuda.device_count() if os.environ.get("DS_ACCELERATOR") != "cpu" else 0
    if wanted == "auto":
        return gpus or 2
    if gpus and int(wanted) > gpus:
        raise UserError(
            f"processes {wanted}: this node has {gpus} GPU(s); choose at most that many, or set DS_ACCELERATOR=cpu"
        )
    return int(wanted)


def is_worker() -> bool:
    """Whether a launcher (ours, torchrun, Slurm's) started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(arguments: list[str], workers: int, nodes: Nodes, folder: Path) -> None:
    """Run `python -m pipeline ARGUMENTS` in `workers` processes here and wait. Raises UserError when one fails."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    for name in ("agent.server.api", "multiprocessing.api"):  # what they log we say in one line
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    failures = folder / f".failures-{nodes.rank}"
    failures.mkdir(parents=True, exist_ok=True)
    for old in failures.iterdir():
        old.unlink()
    os.environ |= {
        PARENT: str(os.getpid()),
        FAILURE: str(failures.resolve()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    with tempfile.TemporaryDirectory() as logs, _signals_restored():
        try:
            elastic_launch(_agent(workers, nodes, logs), sys.executable)("-m", "pipeline", *arguments)
        except ChildFailedError as error:
            raise UserError(_message(failures, error)) from error
        except SignalException as error:
            raise KeyboardInterrupt from error
        except (DistError, RendezvousError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"the nodes did not meet at {nodes.address}:{nodes.port} ({reason}); check --master-addr, take another --master-port, "
                f"and start all {nodes.count} nodes"
            ) from error


def _agent(workers: int, nodes: Nodes, logs: str):
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    single = nodes.count == 1
    return LaunchConfig(
        min_nodes=nodes.count,
        max_nodes=nodes.count,
        nproc_per_node=workers,
        run_id="lemon",
        max_restarts=0,
        monitor_interval=0.2,
        rdzv_backend="c10d" if single else "static",
        rdzv_endpoint="127.0.0.1:0" if single else f"{nodes.address}:{nodes.port}",
        rdzv_configs={} if single else {"rank": nodes.rank},
        local_addr="127.0.0.1" if single else None,
        logs_specs=DefaultLogsSpecs(logs),
    )


@contextmanager
def _signals_restored() -> Iterator[None]:
    """The agent replaces signal handlers and leaves them: Ctrl-C must stop what comes after it as usual."""
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in watched}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _message(failures: Path, error: Exception) -> str:
    """Who failed first. A worker that was killed leaves no message but makes its peers complain, so it comes first;
    then the workers' own words, those for users before faults of ours."""
    held = error.failures  # type: ignore[attr-defined]
    if killed := [rank for rank, failure in held.items() if failure.exitcode == -signal.SIGKILL]:
        return f"worker {killed[0]} died (SIGKILL: out of memory, or stopped from outside); run the command again to resume"
    told = sorted(
        (path.read_text(encoding="utf-8").partition("\n") for path in failures.iterdir()),
        key=lambda parts: bool(parts[2]),
    )
    if told:
        message, _, trace = told[0]
        return f"{message}; traceback in {failures}" if trace else message
    rank, first = next(iter(held.items()))
    how = signal.Signals(-first.exitcode).name if first.exitcode < 0 else f"exit code {first.exitcode}"
    return f"worker {rank} died ({how}) without a message; run the command again to resume"


def become_worker(folder: Path) -> object:
    """First thing in a worker: die with the parent, and hold the run folder. Keep the returned file open."""
    die_with_parent()
    if (parent := os.environ.get(PARENT)) and os.getppid() != int(parent):
        sys.exit(1)  # it died before we asked
    return run_folder.share(folder, int(os.environ.get("GROUP_RANK", "0")))


def tell_failure(error: BaseException) -> None:
    """Leave a worker's message (and, when the fault is ours, its traceback) where the parent finds it, and go at once:
    peers that wait for this worker must not delay the news."""
    if folder := os.environ.get(FAILURE):
        rank, known = os.environ["RANK"], isinstance(error, UserError)
        text = (
            f"{error}\n"
            if known
            else f"worker {rank} failed: {type(error).__name__}: {error}".replace("\n", " ")
            + "\n"
            + traceback.format_exc()
        )
        (Path(folder) / f"rank-{rank}.txt").write_text(text, encoding="utf-8")
        os._exit(2 if known else 1)

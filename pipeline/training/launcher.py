"""Starting workers: torch's elastic agent inside this process, one worker per GPU or N CPU processes. Where another
launcher has started this process as one of several (environment.py), none are started.

A worker dies with its parent (the kernel sends SIGKILL), one that fails takes the others down within seconds, and its
message becomes the UserError of `launch`; of one that was killed, and of a hang, a FaultError. On several nodes every
node runs the same command with its own --node-rank, and they meet before each start (meeting.py).
"""

import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TextIO

from pipeline.errors import FAULT, RESUME, FaultError, Preempted, UserError, one_line
from pipeline.records import run_folder
from pipeline.records.processes import PARENT, die_with_parent
from pipeline.training import preemption, survivors
from pipeline.training.environment import Launched, number

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig

FAILURES, LOG_LEVEL, NODE = "LEMON_FAILURE_FOLDER", "LEMON_LOG_LEVEL", "LEMON_NODE"
"""Environment variables of a worker: where it writes why it failed, its logging level, its node's number among all (the
GROUP_RANK of torch's agent counts those that take part)."""


MEETING_SECONDS = 300
"""In which the nodes that take part must have met. Node 0 has counted them before, and may have hashed a checkpoint
since."""
UNTOLD = 3
"""The exit code of a worker that failed and could not write why."""


@dataclass(frozen=True)
class Nodes:
    """This node among all. `address` and `port`: where node 0 listens; `fewest`: how many suffice, None: all of them;
    `allowed`: settings that a begun stage may go on with others of. Raises UserError for an impossible rank or port."""

    count: int = 1
    rank: int = 0
    address: str = "127.0.0.1"
    port: int = 29500
    fewest: int | None = None
    allowed: frozenset[str] = frozenset()

    kind: ClassVar[str] = "node"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise UserError(f"--node-rank {self.rank} of --nodes {self.count}: ranks count from 0 to {self.count - 1}")
        if not 0 < self.port < 2**16:
            raise UserError(f"--master-port {self.port}: ports are numbers from 1 to {2**16 - 1}")

    @property
    def least(self) -> int:
        return self.fewest or self.count

    @property
    def words(self) -> str:
        """As --nodes takes it."""
        return f"{self.fewest}:{self.count}" if self.fewest else str(self.count)

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.count == 1


@dataclass(frozen=True)
class Seat:
    """The place of a node among those that train a stage together, at `port` of node 0."""

    stage: str
    count: int = 1
    rank: int = 0
    port: int = 0


Start = Nodes | Launched
"""How a command was started: on nodes that start workers, or as one of the workers of another launcher."""


def processes(configured: int | str) -> int:
    """Workers on this node: as configured, else one per GPU, else 2. Raises UserError for more than there are GPUs."""
    import torch

    gpus = torch.cuda.device_count() if os.environ.get("DS_ACCELERATOR") != "cpu" else 0
    if configured == "auto":
        return gpus or 2
    if gpus and int(configured) > gpus:
        raise UserError(
            f"processes {configured}: this node has {gpus} GPU(s); choose at most that many, or set DS_ACCELERATOR=cpu"
        )
    return int(configured)


def launch(arguments: list[str], workers: int, nodes: Nodes, seat: Seat, folder: Path) -> None:
    """Run `python -m pipeline ARGUMENTS` in `workers` processes here and wait. Raises UserError when one fails,
    FaultError when one was killed or they hang, and Preempted where they were asked to stop."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    for name in ("agent.server.api", "multiprocessing.api"):  # a failed worker becomes one UserError, without a log
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    with (
        tempfile.TemporaryDirectory() as logs,
        _failures(folder / f".failures-{nodes.rank}") as failures,
        _signals_restored(),
        preemption.forwarded(),
        survivors.ended() as rest,
    ):
        os.environ |= worker_environment(failures, nodes)
        try:
            elastic_launch(_agent(workers, nodes, seat, logs), sys.executable)("-m", "pipeline", *arguments)
        except ChildFailedError as error:
            if preemption.stopped(failure.exitcode for failure in error.failures.values()):
                raise Preempted("stopped on request") from error
            raise _failure(failures, error, rest.killed) from error
        except SignalException as error:
            raise KeyboardInterrupt from error
        except (DistError, RendezvousError) as error:
            raise FaultError(
                f"node {nodes.rank} lost the other nodes at {nodes.address}:{seat.port} ({one_line(error)}){RESUME}"
            ) from error


@contextmanager
def _failures(folder: Path) -> Iterator[Path]:
    """A place below `folder` where the workers of one launch leave why they failed; kept where one has left a
    traceback, of which the message names the place."""
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=time.strftime("%Y-%m-%d-%H%M%S-"), dir=folder))
    try:
        yield place
    finally:
        if not any(text.strip().count("\n") for text in _texts(place)):
            shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):  # others have left some
                folder.rmdir()


def _texts(failures: Path) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(failures.iterdir())]


def worker_environment(failures: Path, nodes: Nodes) -> dict[str, str]:
    """The environment variables that a worker reads."""
    return {
        PARENT: str(os.getpid()),
        NODE: str(nodes.rank),
        FAILURES: str(failures.resolve()),
        LOG_LEVEL: str(logging.getLogger("pipeline").getEffectiveLevel()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def _agent(workers: int, nodes: Nodes, seat: Seat, logs: str) -> "LaunchConfig":
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    from pipeline.training import node_rendezvous

    single = seat.count == 1
    return LaunchConfig(
        min_nodes=seat.count,
        max_nodes=seat.count,
        nproc_per_node=workers,
        run_id="lemon",
        max_restarts=0,
        monitor_interval=0.2,
        signals_to_handle="SIGINT,SIGHUP,SIGQUIT",  # the others: preemption.py
        rdzv_backend="c10d" if single else node_rendezvous.register(),
        rdzv_endpoint="127.0.0.1:0" if single else f"{nodes.address}:{seat.port}",
        rdzv_configs={} if single else {"rank": seat.rank, "timeout": MEETING_SECONDS},
        local_addr="127.0.0.1" if single else None,
        logs_specs=DefaultLogsSpecs(logs),
    )


@contextmanager
def _signals_restored() -> Iterator[None]:
    """The agent replaces signal handlers and leaves them: Ctrl-C must stop what comes after it as usual."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _failure(failures: Path, error: "ChildFailedError", survivors: set[int]) -> UserError:
    """What failed first. A hang says so; a worker that was killed leaves no message but makes its peers fail too, so it
    comes next; then the workers' messages, bad input before errors with a traceback, which are faults: of a device, of
    the network, or a bug. survivors: process ids of those that the launcher itself has killed."""
    causes = {rank: each.exitcode for rank, each in error.failures.items() if each.pid not in survivors}
    killed = [rank for rank, code in causes.items() if code == -signal.SIGKILL]
    if killed and FAULT not in causes.values():
        return FaultError(f"worker {killed[0]} died (SIGKILL: out of memory, or stopped from outside){RESUME}")
    texts = [text.partition("\n") for text in _texts(failures)]
    if untold := [rank for rank, code in causes.items() if code == UNTOLD]:
        return UserError(
            f"worker {untold[0]} failed and could not leave its message in {failures}; the disk is full, or cannot be "
            "written: make room and run the command again to resume"
        )
    if texts:
        message, _, trace = min(texts, key=lambda text: bool(text[2]))
        if trace:
            return FaultError(f"{message}; traceback in {failures}")
        return FaultError(message) if FAULT in causes.values() else UserError(message)
    if not causes:
        return FaultError(f"worker {min(error.failures)} did not end when the others had{RESUME}")
    rank, code = next(iter(causes.items()))
    reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return FaultError(f"worker {rank} died ({reason}) without a message{RESUME}")


def become_worker(folder: Path) -> TextIO:
    """To be called first in a worker: die with the parent, log at its level, and lock the run folder. Keep the returned
    file open."""
    die_with_parent(number(PARENT))
    take_over_log_level()
    return run_folder.share(folder, number(NODE) or number("GROUP_RANK") or 0)


def take_over_log_level() -> None:
    """Log at the level of the parent, whose command-line options a worker does not get. Rank 0 speaks for all."""
    logger = logging.getLogger("pipeline")
    level = number(LOG_LEVEL) or logger.getEffectiveLevel()
    logger.setLevel(level if os.environ.get("RANK", "0") == "0" else logging.ERROR)


def tell_failure(error: BaseException) -> None:
    """Leave a worker's message where the parent reads it, with its traceback unless bad input is the cause, and exit at
    once: peers that wait for this worker must not delay it."""
    if os.environ.get(FAILURES):
        os._exit(leave_message(error))


def leave_message(error: BaseException, aloud: bool = True) -> int:
    """Write a worker's message where the parent reads it; without such a parent on standard error, if `aloud`. The exit
    code to end with."""
    rank, bad_input = os.environ["RANK"], isinstance(error, UserError)
    summary = f"worker {rank} failed: {type(error).__name__}: {error}".replace("\n", " ")
    text = f"{error}\n" if bad_input else f"{summary}\n{traceback.format_exc()}"
    folder = os.environ.get(FAILURES)
    try:
        if folder:
            (Path(folder) / f"rank-{rank}.txt").write_text(text, encoding="utf-8")
        elif aloud:
            print(f"lemon: {text}", end="", file=sys.stderr, flush=True)
    except OSError:  # a worker's traceback would tell of the connection to the one that could not write
        print(text.partition("\n")[0], file=sys.stderr, flush=True)
        return UNTOLD
    return FAULT if isinstance(error, FaultError) else 2 if bad_input else 1

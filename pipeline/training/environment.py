"""Which launcher has started this process, as one of how many: from the environment alone.

torchrun and the `deepspeed` launcher set torch's own variables; srun and mpirun set theirs, and torch's follow. A
PyTorchJob sets torch's without LOCAL_RANK: its ranks are pods, each a node. What is set by half is refused: processes
that do not know of each other would each do the whole job.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pipeline.errors import UserError

TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SIGNS = {"TORCHELASTIC_RUN_ID": "torchrun", "CROSS_RANK": "deepspeed"}
"""Variables that one launcher alone sets."""
OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
"""Open MPI's documentation, section 11.1. Its OMPI_COMM_WORLD_NODE_RANK counts processes on a node, not nodes."""
HYDRA = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
"""Of the process manager of MPICH and Intel MPI."""
SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID")
"""srun(1)."""
TASKS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
TASKS_OF_NODES = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
NODES = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
"""Of the step, and else of the job."""
STEP = "SLURM_STEP_ID"
"""Set in what srun has started: not in the shell of an `salloc`, not in an `sbatch` script. Where `salloc` gives a
shell on a node, the shell is a step of one task."""
POD = "KUBERNETES_SERVICE_HOST"
"""Set in every container of Kubernetes."""
NODES_OF_POD = "PET_NNODES"
"""Of the Kubeflow training operator, whose WORLD_SIZE is pods x nprocPerNode (its envvar.go)."""
MPI_PORT = 29500
"""Where rank 0 listens under mpirun, which gives no number to derive a port from; torch's default."""
NODE = re.compile(r"(?:[\w.-]|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\])+", re.ASCII)
"""A host of Slurm, or several: `n[08-10,12]`."""
SLURM_PORTS = range(15000, 30000)
"""Below those that Linux gives to outgoing connections (from 32768)."""


@dataclass(frozen=True)
class Launched:
    """This process among all that a launcher has started. names_nodes: it starts one process a node, which starts the
    workers; rank and world_size count these nodes. allowed: settings that a begun stage may go on with others of."""

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    master_address: str
    master_port: int
    names_nodes: bool = False
    allowed: frozenset[str] = frozenset()
    kind: ClassVar[str] = "rank"

    def __post_init__(self) -> None:
        """Raises UserError for a rank or port that cannot be."""
        if not 0 <= self.rank < self.world_size:
            raise UserError(
                f"{self.launcher} says rank {self.rank} of {self.world_size}: ranks count from 0 to "
                f"{self.world_size - 1}; are its variables left over from another start?"
            )
        if not 0 < self.master_port < 2**16:
            raise UserError(f"MASTER_PORT={self.master_port} in the environment: ports are numbers from 1 to 65535")

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.world_size == 1

    @property
    def line(self) -> str:
        """For rank 0 to print."""
        where = f"which meet at {self.master_address}:{self.master_port}"
        if self.names_nodes:
            return f"started by {self.launcher} as node {self.rank} of {self.world_size}, {where}"
        return (
            f"started by {self.launcher} as rank {self.rank} of {self.world_size} "
            f"({self.local_world_size} on this node), {where}"
        )

    def export(self) -> None:
        """Set torch's variables, which DeepSpeed and torch read. DeepSpeed wants Open MPI's local rank to be the same,
        which is another where an mpirun has started this process's launcher."""
        os.environ |= {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "GROUP_RANK": str(self.node_rank),
            "MASTER_ADDR": self.master_address,
            "MASTER_PORT": str(self.master_port),
        }
        if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:
            os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = str(self.local_rank)


def recognise() -> Launched | None:
    """What has started this process as one of several; None: nothing, or srun or mpirun as the only one. torch's
    variables come first, for they are the innermost launcher's, then mpirun's, whose daemons are a step of Slurm.
    Raises UserError for variables that are set by half, are no numbers, or contradict each other."""
    if "RANK" in os.environ:
        return _pods() if "LOCAL_RANK" not in os.environ and POD in os.environ else _torch()
    if _any(OPEN_MPI):
        return _open_mpi()
    if "MPI_LOCALRANKID" in os.environ or (_any(HYDRA) and STEP not in os.environ):  # srun --mpi=pmi2 sets PMI_RANK too
        return _hydra()
    if STEP in os.environ and _number(_either(TASKS), "srun") > 1:
        return _slurm()
    _refuse_leftovers()
    return None


def _any(names: Sequence[str]) -> bool:
    return any(name in os.environ for name in names)


def _torch() -> Launched:
    launcher = next((name for variable, name in SIGNS.items() if variable in os.environ), "a launcher")
    _require(TORCH, launcher)
    rank, world_size, local_rank, port = (_number(name, launcher) for name in TORCH if name != "MASTER_ADDR")
    local_world_size = number("LOCAL_WORLD_SIZE") or number("LOCAL_SIZE") or 1
    node_rank = number("GROUP_RANK") or number("CROSS_RANK") or 0
    address = os.environ["MASTER_ADDR"]
    return Launched(launcher, rank, world_size, local_rank, local_world_size, node_rank, address, port)


def _pods() -> Launched | None:
    """A PyTorchJob with a master."""
    launcher = "a PyTorchJob"
    rank, pods, port = (_number(name, launcher) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    _require(["MASTER_ADDR"], launcher)
    pods = number(NODES_OF_POD) or pods
    return Launched(launcher, rank, pods, 0, 1, rank, os.environ["MASTER_ADDR"], port, True) if pods > 1 else None


def _open_mpi() -> Launched | None:
    return _mpi(OPEN_MPI, "mpirun (Open MPI)", "mpirun -x MASTER_ADDR=HOST")


def _hydra() -> Launched | None:
    return _mpi(HYDRA, "mpirun (MPICH, Intel MPI)", "mpirun -genv MASTER_ADDR HOST")


def _mpi(names: Sequence[str], launcher: str, export: str) -> Launched | None:
    """Rank, size, rank on this node, size on this node under these names. Which node it is nothing says; the number
    that ranks in the order of nodes would give names a lock and no more."""
    if os.environ.get(names[1]) == "1":
        return None
    rank, size, local_rank, local_size = (_number(name, launcher) for name in names)
    if not os.environ.get("MASTER_ADDR") and local_size != size:
        raise UserError(
            f"{launcher} has started {size} processes on several nodes and does not say where rank 0 is; name its "
            f"host: {export}"
        )
    node = max(0, rank - local_rank) // max(1, local_size)
    return _derived(launcher, rank, size, local_rank, local_size, node, "127.0.0.1", MPI_PORT)


def _slurm() -> Launched:
    """A step of several tasks. Task 0 is on the first node of the step."""
    rank, local_rank, node, job = (_number(name, "srun") for name in SLURM)
    nodes, tasks = _either(NODES), _either(TASKS_OF_NODES)
    _require([nodes, tasks], "srun")
    here, port = tasks_on_node(os.environ[tasks], node), slurm_port(job, _number(STEP, "srun"))
    size, first = _number(_either(TASKS), "srun"), hosts(os.environ[nodes])[0]
    return _derived("srun", rank, size, local_rank, here, node, first, port)


def _either(names: Sequence[str]) -> str:
    """The first that is set, the last if none is."""
    return next((name for name in names if name in os.environ), names[-1])


def slurm_port(job: int, step: int) -> int:
    """Where rank 0 of a step listens: 15000 + (job + 1000 step) mod 15000. Jobs that share a node have other numbers,
    as have steps of a job."""
    return SLURM_PORTS[(job + 1000 * step) % len(SLURM_PORTS)]


def _derived(
    launcher: str, rank: int, size: int, local_rank: int, local_size: int, node: int, address: str, port: int
) -> Launched:
    """What MASTER_ADDR and MASTER_PORT say counts. Raises UserError where torch's other variables contradict."""
    for name, value in (("WORLD_SIZE", size), ("LOCAL_RANK", local_rank)):
        if number(name) not in (None, value):
            raise UserError(f"{name}={os.environ[name]} in the environment, and {launcher} says {value}; unset {name}")
    address, port = os.environ.get("MASTER_ADDR") or address, number("MASTER_PORT") or port
    return Launched(launcher, rank, size, local_rank, local_size, node, address, port)


def _refuse_leftovers() -> None:
    """Raises UserError for variables of torch's launchers without RANK."""
    elastic = next((name for name in (NODES_OF_POD, "PET_NODE_RANK", "PET_RDZV_ENDPOINT") if name in os.environ), None)
    if elastic:
        raise UserError(
            f"{elastic} is set and RANK is not: a job of Kubeflow without a master; start torchrun in its containers, "
            "which reads such variables (torchrun --no-python lemon run CONFIG)"
        )
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        if name in os.environ:
            raise UserError(f"{name}={os.environ[name]} in the environment and no RANK: set both, or unset {name}")


def _require(names: Sequence[str], launcher: str) -> None:
    missing = [name for name in names if name not in os.environ or (name == "MASTER_ADDR" and not os.environ[name])]
    if missing:
        raise UserError(
            f"{', '.join(missing)} missing in the environment, though {launcher} has set other variables that go with "
            "it; start all processes by one launcher, or unset those"
        )


def _number(name: str, launcher: str) -> int:
    """Of a variable that must be there."""
    _require([name], launcher)
    value = number(name)
    assert value is not None
    return value


def number(variable: str) -> int | None:
    """The environment's value, None where it has none. Raises UserError for what is no whole number."""
    text = os.environ.get(variable)
    if text is not None and not (text.isascii() and text.isdecimal()):
        raise UserError(f"{variable}={text} in the environment: launchers set a whole number there; unset it")
    return None if text is None else int(text)


def hosts(nodes: str) -> list[str]:
    """The hosts of a list as Slurm writes it: `n[08-10,12],gpu1` is n08, n09, n10, n12, gpu1. Raises UserError for what
    is none."""
    parts = re.findall(r"(?:\[[^\]]*\]|[^,])+", nodes)  # at the commas outside of brackets
    names = [name for part in parts if NODE.fullmatch(part) for name in _expanded(part)]
    if not names or not all(NODE.fullmatch(part) for part in parts):
        raise UserError(f"'{nodes}' is no list of Slurm's nodes; set MASTER_ADDR to the host of rank 0")
    return names


def _expanded(part: str) -> list[str]:
    """The first bracket written out, then those behind it (`r[1-2]n[1-2]`)."""
    before, bracket, rest = part.partition("[")
    if not bracket:
        return [part]
    spans, _, behind = rest.partition("]")
    return [before + middle + end for text in spans.split(",") for middle in _span(text) for end in _expanded(behind)]


def _span(text: str) -> list[str]:
    """`08-10` is 08, 09, 10: zeros in front stay."""
    first, _, last = text.partition("-")
    return [str(value).zfill(len(first)) for value in range(int(first), int(last or first) + 1)]


def tasks_on_node(counts: str, node: int) -> int:
    """Tasks on a node of a step, out of `2(x3),1`: two on each of the first three, one on the fourth. Raises
    UserError."""
    each: list[int] = []
    for part in counts.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        each += [int(found[1])] * int(found[2] or 1) if found else []
    if node >= len(each):
        raise UserError(f"'{counts}' says no number of tasks for node {node} of the Slurm step; was it cut?")
    return each[node]

"""Commands as another launcher starts them: with its variables, one process for each rank."""

import os
from pathlib import Path

from pipeline.cli import main
from tests.helpers.cli import environment_kept
from tests.helpers.processes import Child


def of_srun(rank: int, port: int) -> dict[str, str]:
    """What a task of a step of two on one node sees; nothing knows a host of this name."""
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "n[7-8]", "SLURM_NODEID": "0"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {**step, **job, **address, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}


def of_mpirun(rank: int, port: int) -> dict[str, str]:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "SIZE": 2, "LOCAL_SIZE": 2, "NODE_RANK": rank}
    return {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in ranks.items()} | {"MASTER_PORT": str(port)}


def task(said: Path, variables: dict[str, str], *arguments: object) -> Child:
    """A command in a fork of this process, as a launcher with these variables starts it."""

    def work() -> int:
        os.environ |= variables
        return main(list(map(str, arguments)))

    with environment_kept():
        return Child(work, said)

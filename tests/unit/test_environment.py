"""Which launcher has started a process: recognised by what it sets, refused where it has set half of it."""

import os

import pytest

from pipeline.cli import build_parser, run_commands
from pipeline.errors import UserError
from pipeline.training import environment
from pipeline.training.environment import Launched, hosts, recognise, slurm_port, tasks_on_node
from pipeline.training.launcher import Nodes, Start
from tests.helpers.cli import launcher_variable

TORCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29501"}
TORCHRUN = {**TORCH, "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1", "TORCHELASTIC_RUN_ID": "none"}
DEEPSPEED = {**TORCH, "LOCAL_SIZE": "2", "CROSS_RANK": "1", "CROSS_SIZE": "2"}
SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_JOB_NODELIST": "gpu[07-10]",
    "SLURM_STEP_NODELIST": "gpu[08-09]",
    "SLURM_TASKS_PER_NODE": "8(x4)",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_NODE_RANK": "1",
    "MASTER_ADDR": "n1",
}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "MASTER_ADDR": "n1"}
POD = {**TORCH, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
del POD["LOCAL_RANK"]

FOUND = {
    "torchrun": (TORCHRUN, Launched("torchrun", 3, 4, 1, 2, 1, "n1", 29501)),
    "deepspeed": (DEEPSPEED, Launched("deepspeed", 3, 4, 1, 2, 1, "n1", 29501)),
    "by hand": (TORCH, Launched("a launcher", 3, 4, 1, 1, 0, "n1", 29501)),
    "srun": (SRUN, Launched("srun", 3, 4, 1, 2, 1, "gpu08", 15000 + 4711)),
    "mpirun": (OPEN_MPI, Launched("mpirun (Open MPI)", 3, 4, 1, 2, 1, "n1", 29500)),
    "hydra": (HYDRA, Launched("mpirun (MPICH, Intel MPI)", 3, 4, 1, 2, 1, "n1", 29500)),
    "pod": (POD, Launched("a PyTorchJob", 3, 4, 0, 1, 3, "n1", 29501, names_nodes=True)),
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in list(os.environ):
        if launcher_variable(name):
            monkeypatch.delenv(name)


@pytest.fixture
def started(monkeypatch):
    """Recognise these variables, and no others; None takes one away again."""

    def recognised(*given: dict[str, str | None]) -> Launched | None:
        for name, value in {name: value for variables in given for name, value in variables.items()}.items():
            if value is None:
                monkeypatch.delenv(name)
            else:
                monkeypatch.setenv(name, value)
        return recognise()

    return recognised


@pytest.mark.parametrize("variables, expected", FOUND.values(), ids=FOUND)
def test_each_launcher_is_recognised(started, variables, expected):
    assert started(variables) == expected


def test_torchs_variables_follow(monkeypatch):
    """DeepSpeed compares Open MPI's local rank with LOCAL_RANK, also where mpirun has started what started this."""
    monkeypatch.setattr(os, "environ", {"OMPI_COMM_WORLD_LOCAL_RANK": "0"})
    FOUND["srun"][1].export()
    assert os.environ == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "gpu08",
        "MASTER_PORT": "19711",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    }


NEEDED = [
    *[(TORCHRUN, name) for name in environment.TORCH],
    *[(DEEPSPEED, name) for name in environment.TORCH],
    *[(OPEN_MPI, name) for name in environment.OPEN_MPI],
    *[(HYDRA, name) for name in environment.HYDRA],
    *[(SRUN, name) for name in environment.SLURM],
    *[(POD, name) for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")],
]


@pytest.mark.parametrize("variables, name", NEEDED, ids=[f"{next(iter(v))}-{name}" for v, name in NEEDED])
def test_what_is_missing_is_named(started, variables, name):
    with pytest.raises(UserError) as caught:
        started({key: value for key, value in variables.items() if key != name})
    assert name in str(caught.value).partition(";")[0] and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["abc", "", "-1", "2.5", "²"])
@pytest.mark.parametrize(
    "variables, name",
    [
        (TORCHRUN, "RANK"),
        (TORCHRUN, "GROUP_RANK"),
        (DEEPSPEED, "MASTER_PORT"),
        (SRUN, "SLURM_PROCID"),
        (SRUN, "MASTER_PORT"),
        (OPEN_MPI, "OMPI_COMM_WORLD_SIZE"),
        (HYDRA, "PMI_RANK"),
        (POD, "WORLD_SIZE"),
    ],
)
def test_what_is_no_number_is_named(started, variables, name, text):
    with pytest.raises(UserError) as caught:
        started(variables, {name: text})
    assert str(caught.value).startswith(f"{name}={text} in the environment: launchers set a whole number there")


CONTRADICTIONS = [
    (TORCHRUN, {"RANK": "4"}, "torchrun says rank 4 of 4: ranks count from 0 to 3"),
    (TORCHRUN, {"MASTER_PORT": "65536"}, "MASTER_PORT=65536 in the environment: ports are numbers from 1 to 65535"),
    (TORCHRUN, {"MASTER_ADDR": ""}, "MASTER_ADDR missing"),
    (SRUN, {"WORLD_SIZE": "8"}, "WORLD_SIZE=8 in the environment, and srun says 4; unset WORLD_SIZE"),
    (OPEN_MPI, {"LOCAL_RANK": "0"}, "LOCAL_RANK=0 in the environment, and mpirun (Open MPI) says 1"),
    (SRUN, {"SLURM_STEP_NODELIST": "gpu[08-"}, "'gpu[08-' is no list of Slurm's nodes; set MASTER_ADDR"),
    (SRUN, {"SLURM_NODEID": "2"}, "'2(x2)' says no number of tasks for node 2"),
    (OPEN_MPI, {"MASTER_ADDR": ""}, "does not say where rank 0 is; name its host: mpirun -x MASTER_ADDR=HOST"),
]


@pytest.mark.parametrize("variables, more, complaint", CONTRADICTIONS, ids=[c[2][:30] for c in CONTRADICTIONS])
def test_a_contradiction_is_told(started, variables, more, complaint):
    with pytest.raises(UserError) as caught:
        started(variables, more)
    assert complaint in str(caught.value)


STEP = {"SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE"}
BATCH = {**{name: value for name, value in SRUN.items() if name not in STEP}, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
ALONE = {
    "nothing": {},
    "only an address": {"MASTER_ADDR": "n1", "MASTER_PORT": "29500"},
    "an sbatch script": BATCH,
    "a shell of salloc": {name: BATCH[name] for name in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_NTASKS")},
    "a shell of salloc on a node": {**BATCH, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
    "a step of one task": {**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
    "one process of mpirun": {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    "one process of mpiexec": {"PMI_RANK": "0", "PMI_SIZE": "1"},
    "a job of one pod": {**POD, "RANK": "0", "WORLD_SIZE": "1"},
}


@pytest.mark.parametrize("variables", ALONE.values(), ids=ALONE)
def test_a_plain_start_stays_one(started, variables):
    assert started(variables) is None


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK", "PET_NNODES", "PET_RDZV_ENDPOINT"])
def test_what_goes_with_a_rank_is_refused_without_one(started, name):
    with pytest.raises(UserError, match=rf"^{name}.* RANK"):
        started({name: "2"})


def test_the_innermost_launcher_counts(started):
    """torchrun in a step; mpirun, whose daemons are tasks of a step; srun with MPI's interface."""
    assert started(SRUN, TORCHRUN).launcher == "torchrun"
    assert started(dict.fromkeys(TORCHRUN), {**OPEN_MPI, "SLURM_STEP_NUM_TASKS": "2"}).world_size == 4
    assert started(dict.fromkeys(OPEN_MPI), {**SRUN, "PMI_RANK": "3", "PMI_SIZE": "4"}).launcher == "srun"


def test_a_torchrun_of_one_process_is_one_of_its_own(started):
    """It has been told how many; a plain start would take all GPUs."""
    assert started(TORCHRUN, {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}).world_size == 1


def test_address_and_port_can_be_chosen(started):
    launched = started(SRUN, {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "4000"})
    assert (launched.master_address, launched.master_port) == ("10.0.0.7", 4000)


def test_one_node_of_mpirun_needs_no_address(started):
    variables = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}
    del variables["MASTER_ADDR"]
    assert started(variables).master_address == "127.0.0.1"


def test_nodes_of_a_job_whose_pods_have_several_processes(started):
    """The operator's WORLD_SIZE counts processes then, its RANK pods."""
    launched = started(POD, {"WORLD_SIZE": "32", "PET_NNODES": "4", "PET_NPROC_PER_NODE": "8"})
    assert (launched.rank, launched.world_size) == (3, 4)


def start_of(*arguments: str) -> Start:
    return run_commands.start_of(build_parser().parse_args(["run", "c.yaml", *arguments]))


def test_a_pod_is_a_node_that_starts_its_workers(started):
    started(POD)
    assert start_of() == Nodes(4, 3, "n1", 29501)
    assert "LOCAL_RANK" not in os.environ


def test_nodes_that_are_named_count(started, monkeypatch):
    """srun may start one process a node, and PyTorchJobs were told their nodes so far."""
    started(SRUN)
    assert start_of("--nodes", "2", "--node-rank", "1", "--master-addr", "n0") == Nodes(2, 1, "n0")
    for name, value in {**dict.fromkeys(SRUN), **TORCH}.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with pytest.raises(UserError, match=r"^--nodes starts workers, and this process is one already \(RANK=3"):
        start_of("--nodes", "2")


@pytest.mark.parametrize(
    "nodes, expected",
    [
        ("localhost", ["localhost"]),
        ("n[1-3,7],gpu01", ["n1", "n2", "n3", "n7", "gpu01"]),
        ("gpu[008-010]", ["gpu008", "gpu009", "gpu010"]),
        ("gpu[08-10,099]", ["gpu08", "gpu09", "gpu10", "gpu099"]),
        ("r[1-2]n[01-02].site", ["r1n01.site", "r1n02.site", "r2n01.site", "r2n02.site"]),
        ("a-b,c_d", ["a-b", "c_d"]),
    ],
)
def test_a_list_of_nodes_is_expanded(nodes, expected):
    assert hosts(nodes) == expected


@pytest.mark.parametrize("nodes", ["", "n[1-3", "n1-3]", "n[]", "n[a]", "n[3-1]", "n 1", "n[1-2-3]", "n[1],m[x]"])
def test_what_is_no_list_of_nodes(nodes):
    with pytest.raises(UserError, match="is no list of Slurm's nodes; set MASTER_ADDR"):
        hosts(nodes)


def test_tasks_of_a_node():
    assert [tasks_on_node("2(x3),1,10(x2)", node) for node in range(6)] == [2, 2, 2, 1, 10, 10]


def test_the_port_of_a_step():
    """What the documentation says, and below the ports that Linux gives away."""
    assert [slurm_port(0, 0), slurm_port(14999, 0), slurm_port(15000, 0), slurm_port(1, 2)] == [
        15000,
        29999,
        15000,
        17001,
    ]

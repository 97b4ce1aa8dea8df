"""`compile: true` of a stage: the numbers of eager layers under every ZeRO stage, on a resume too; its time is told."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.accounting.wall_time import wall_time
from pipeline.records.run_folder import StageFolder
from tests.helpers.cli import environment, lemon, lemon_here, run_python
from tests.helpers.parity_task import BATCH
from tests.helpers.required import require
from tests.helpers.rotation import rotated
from tests.helpers.runs import losses, tiny_run

ENGINE = "tests.helpers.scripts.compiled_losses:both"
COMPILED = "stages.small.compile=true"
ALONE = ("processes=1", "stages.small.schedule.horizon=8 steps", "stages.small.evaluate_every=4 steps")
"""One process compiles for itself, and a few steps do."""


@pytest.fixture(autouse=True)
def compiler() -> str:
    return require("g++", "g++")


def both(
    workers, world: int = 1, steps: int = 6, family: str = "bert-pre-ln", sizes: dict | None = None, **stage: object
) -> tuple[list, list]:
    """The losses of eager and of compiled layers, each of which have compiled a graph for training and one for
    evaluation, whole ones. sizes: of the model, where they are others."""
    fields = {"micro_batch": BATCH // world // 2, **stage}
    job = {"family": family, "sizes": sizes or {}, "stage": fields, "steps": steps}
    told = workers.run(ENGINE, job, world=world)
    eager, compiled = told["eager"], told["compiled"]
    assert (eager["graphs"], eager["seconds"]) == (0, 0)
    assert (compiled["graphs"], compiled["breaks"]) == (2, 0) and compiled["seconds"] > 0
    assert compiled["linear"] == [True, True] and eager["linear"][1], "DeepSpeed's is not compiled, and does not stay"
    return eager["losses"], compiled["losses"]


@pytest.mark.slow
def test_fp32_over_200_steps(workers):
    """1e-5: sums in another order; measured 8e-8. It trains: the loss falls from 3.9 to 1.3."""
    eager, compiled = both(workers, steps=200, zero_stage=1)
    assert compiled == pytest.approx(eager, rel=1e-5) and compiled[199] < 0.5 * compiled[0]


@pytest.mark.slow
def test_bf16_over_200_steps(workers):
    """A fused kernel rounds once where eager layers round after each operation, to 8 bits: losses differ by 1.5e-3
    of themselves at most in single steps, in the mean over 20 steps by 2e-4 (measured)."""
    eager, compiled = both(workers, steps=200, zero_stage=2, precision="bf16")
    means = [[sum(kind[at : at + 20]) / 20 for at in range(0, 200, 20)] for kind in (eager, compiled)]
    assert means[1] == pytest.approx(means[0], rel=1e-3) and eager != compiled
    assert compiled == pytest.approx(eager, rel=3e-3)


@rotated(one_in=3, of="zero_stage")
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_the_other_zero_stages(workers, zero_stage):
    """Under ZeRO-3 a layer is gathered as a whole: no hook of DeepSpeed's breaks its graph."""
    eager, compiled = both(workers, zero_stage=zero_stage)
    assert compiled == pytest.approx(eager, rel=1e-5)


PAIRED = [(0, "vit", True), (1, "bert", False), (2, "vit", False), (3, "bert", True)]
"""Every stage, either family, with and without checkpointing."""


@rotated(one_in=4, of="zero_stage")
@pytest.mark.parametrize("zero_stage, family, checkpointing", PAIRED)
def test_two_ranks_under_dropout(workers, zero_stage, family, checkpointing):
    """Its masks are those of eager layers, also where a checkpoint runs a layer again."""
    fields = {"zero_stage": zero_stage, "activation_checkpointing": checkpointing}
    eager, compiled = both(workers, world=2, family=family, sizes={"dropout": 0.1}, **fields)
    assert compiled == pytest.approx(eager, rel=1e-5)


@rotated(one_in=2, of="zero_stage")
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_ranks_under_stochastic_depth(workers, zero_stage):
    fields = {"zero_stage": zero_stage, "activation_checkpointing": True, "sizes": {"drop_path": 0.5}}
    eager, compiled = both(workers, world=2, family="vit", **fields)
    assert compiled == pytest.approx(eager, rel=1e-5)


@pytest.fixture(scope="module")
def compiled_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    lemon_here("train", tiny_run(folder), "--stage", "small", COMPILED, *ALONE)
    return folder


def facts(folder: Path) -> dict:
    return json.loads((folder / "run" / "small" / "stage.json").read_text())


def killed_behind_step_5(finished: Path, folder: Path) -> tuple[object, ...]:
    """The command that goes on with a copy of the run."""
    shutil.copytree(finished / "run", folder / "run")
    shutil.rmtree(folder / "run" / "small" / "checkpoints" / "step-0000008")
    path = folder / "run" / "small" / "stage.json"
    path.write_text(json.dumps({**facts(folder), "status": "running"}))
    return ("train", tiny_run(folder), "--stage", "small", *ALONE)


def test_the_time_of_compiling_is_told_and_recorded(compiled_run):
    stage = StageFolder(compiled_run / "run" / "small")
    rows = wall_time("small", stage.times).rows
    assert rows["compile"] > 0 and "small: compiled its layers in " in (stage.path / "log.txt").read_text()
    assert facts(compiled_run)["settings"]["compile"] is True


def test_a_resume_gives_the_same_numbers(compiled_run, tmp_path, capfd):
    """Compiled again, though the config leaves it open and a CPU would not."""
    assert lemon(capfd, *killed_behind_step_5(compiled_run, tmp_path))[0] == 0
    assert losses(tmp_path / "run", "small") == losses(compiled_run / "run", "small")
    assert [start["settings"]["compile"] for start in facts(tmp_path)["starts"]] == [True, True]


@pytest.mark.slow
def test_what_was_compiled_goes_on_without_only_where_it_is_allowed(compiled_run, tmp_path, capfd):
    command = (*killed_behind_step_5(compiled_run, tmp_path), "stages.small.compile=false")
    code, _, error = lemon(capfd, *command)
    assert code == 2 and "stage.compile was True, is now False; go on with it all the same (--allow compile)" in error
    assert lemon(capfd, *command, "--allow", "compile")[0] == 0
    assert [start["settings"]["compile"] for start in facts(tmp_path)["starts"]] == [True, False]
    ours, theirs = (losses(folder / "run", "small") for folder in (tmp_path, compiled_run))
    assert [step for step, *_ in ours] == [step for step, *_ in theirs]
    for (_, *one), (_, *other) in zip(ours, theirs, strict=True):
        assert one == [None if value is None else pytest.approx(value, abs=1e-5) for value in other]


@pytest.mark.slow
def test_without_a_compiler_it_is_refused_in_one_line(tmp_path):
    nothing = environment(CXX="/nowhere/g++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    command = ("-m", "pipeline", "train", tiny_run(tmp_path), "--stage", "small", COMPILED, *ALONE)
    done = run_python(*command, env=nothing, timeout=300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "stages.small.compile: torch.compile does not work on all ranks (" in done.stderr
    assert "install a C++ compiler" in done.stderr and not (tmp_path / "run" / "small" / "metrics.jsonl").exists()

"""Where a training stage starts or goes on: what it cannot load is refused, with the command that makes it fit."""

import shlex
import shutil
from pathlib import Path

import pytest

from pipeline import checkpoints, config, models
from pipeline.accounting.lineage import lineage
from pipeline.accounting.recorded_runs import RecordReader
from pipeline.checkpoints import CheckpointLayout, diff, manifest, publish, retention
from pipeline.config.schema import Config, Retention, TrainStage
from pipeline.data import open_prepared
from pipeline.errors import UserError
from pipeline.records.run_folder import StageFolder
from pipeline.runs import preflight
from pipeline.training.fingerprint import Fingerprint
from pipeline.training.stage import plan_training
from pipeline.training.start import continues_optimizer
from tests.helpers import cli
from tests.helpers.checkpoints import trained
from tests.helpers.cli import ROOT
from tests.helpers.invented_runs import SMALL
from tests.helpers.invented_runs import train as invented
from tests.helpers.runs import tiny_run

GROW = "stages.grown.optimizer_state=grow"


def large(loaded: Config) -> TrainStage:
    return loaded.training_stage("large")


@pytest.fixture(scope="module")
def expanded(tmp_path_factory) -> Path:
    """A run whose stage `small` is invented, and whose moments grew into the shards of ZeRO 1 on 2 ranks."""
    folder = tmp_path_factory.mktemp("grown")
    path = tiny_run(folder)
    assert cli.main(["prepare", str(path), "-q"]) == 0
    loaded = config.load(path)
    facts = open_prepared(loaded.path / "data").facts
    small = invented(loaded.path, "small", SMALL, {0: 5.0, 7: 4.0})
    layout = CheckpointLayout.of(loaded.training_stage("small"), 2)
    trained(small.checkpoints / "step-0000007", models.trained(loaded.models["small"], facts), layout)
    settings = Fingerprint.of(loaded, loaded.stage("small")).settings()
    small.finish(small.facts.model_copy(update={"fingerprint": settings}))
    assert cli.main(["train", str(path), "--stage", "grown", "-q", GROW]) == 0
    return folder


@pytest.fixture
def run(expanded, tmp_path) -> Path:
    """A copy; returns its config."""
    path = tiny_run(tmp_path)
    shutil.copytree(expanded / "run", tmp_path / "run")
    return path


def refused(capsys, *arguments: object) -> str:
    code, _, error = cli.lemon(capsys, *arguments)
    assert code == 2 and error.count("\n") == 1
    return error


@pytest.mark.parametrize("override, stage, ranks", [("processes=4", 1, 4), ("stages.large.zero_stage=3", 3, 2)])
def test_a_grown_state_in_another_layout_is_refused_with_the_command_for_it(run, capsys, override, stage, ranks):
    """The command writes beside it what then is the stage's newest checkpoint, to the bit the same state."""
    start = checkpoints.locate(run.parent / "run" / "grown")
    error = refused(capsys, "train", run, "--stage", "large", GROW, override)
    runs_as = f"this stage runs as native ZeRO stage {stage}, {ranks} ranks; run it as before, or first"
    assert f"{start}: written as native ZeRO stage 1, 2 ranks, {runs_as}" in error
    command = shlex.split(error.partition("first write it as that: lemon ")[2])
    assert cli.lemon(capsys, *command)[0] == 0
    loaded = config.load(run, [GROW, override])
    plan = plan_training(loaded, large(loaded))
    assert plan.start.name.startswith(start.name + "-zero") and diff.compare(start, plan.start).equal
    assert continues_optimizer(plan.start, large(loaded), ranks)
    assert manifest.read(plan.start).optimizer_state == "grow"


@pytest.mark.parametrize("override, stage, ranks", [("processes=4", 1, 4), ("stages.large.zero_stage=2", 2, 2)])
def test_a_begun_stage_in_another_layout_is_refused_with_the_command_for_it(
    tmp_path, capsys, monkeypatch, override, stage, ranks
):
    """`large` of this run was interrupted at step 20, in ZeRO 1 on 2 ranks."""
    shutil.copytree(ROOT / "tests" / "fixtures" / "format-1", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    newest = Path("run/large/checkpoints/step-0000020")
    error = refused(capsys, "run", "tiny.yaml", "folder=run", override)
    runs_as = f"this stage runs as native ZeRO stage {stage}, {ranks} ranks"
    assert f"{newest}: written as native ZeRO stage 1, 2 ranks, {runs_as}; run it as before, or first" in error
    command = shlex.split(error.partition("first write it as that: lemon ")[2])
    assert cli.lemon(capsys, *command)[0] == 0
    loaded = config.load("tiny.yaml", ["folder=run", override])
    preflight.checkpoints_fit(loaded, loaded.stages, ranks)
    resumed = publish.newest(newest.parent)
    assert resumed == Path(f"{newest}-zero{stage}x{ranks}") and manifest.read(resumed).step == 20
    assert diff.compare(newest, resumed).equal
    large, grown, small = lineage(Path("run/large"), RecordReader())
    assert (large.kind, grown.kind, small.kind, large.training_flops) == ("train", "expand", "train", 23 * 917_376)


def test_a_begun_stage_goes_to_another_layout_and_back(tmp_path, capsys, monkeypatch):
    """What was written last is the newest, however often; a copy that somebody has put aside is none of them."""
    shutil.copytree(ROOT / "tests" / "fixtures" / "format-1", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    folder = Path("run/large/checkpoints")
    shutil.copytree(folder / "step-0000020", folder / "step-0000020-copy")
    for stage in (3, 2, 1):
        error = refused(capsys, "run", "tiny.yaml", "folder=run", f"stages.large.zero_stage={stage}", "processes=4")
        assert cli.lemon(capsys, *shlex.split(error.partition("first write it as that: lemon ")[2]))[0] == 0
        loaded = config.load("tiny.yaml", ["folder=run", f"stages.large.zero_stage={stage}"])
        preflight.checkpoints_fit(loaded, loaded.stages, 4)
    assert publish.newest(folder).name == "step-0000020-zero3x4-zero2x4-zero1x4"
    assert lineage(Path("run/large"), RecordReader())[0].manifest["zero_stage"] == 1
    retention.prune(folder, Retention(last=1))
    assert sorted(path.name for path in folder.iterdir()) == [
        "step-0000020-copy",
        "step-0000020-zero3x4-zero2x4-zero1x4",
    ]


def test_what_no_training_will_load_is_not_looked_at(tmp_path, capsys, monkeypatch):
    """Data are prepared by one process, whatever the stages run on; finished stages are not loaded."""
    shutil.copytree(ROOT / "tests" / "fixtures" / "format-1", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert cli.lemon(capsys, "prepare", "tiny.yaml", "folder=run", "processes=1")[0] == 0
    loaded = config.load("tiny.yaml", ["folder=run"])
    preflight.checkpoints_fit(loaded, [loaded.stage("small"), loaded.stage("grown")], 1)
    with pytest.raises(UserError, match="native ZeRO stage 1, 1 rank;"):
        preflight.checkpoints_fit(loaded, loaded.stages, 1)


def test_other_starts_with_a_grown_state_are_held_to_it_too(run, capsys):
    """A folder that the config names must be named anew; its optimizer must be the stage's own."""
    start = checkpoints.locate(run.parent / "run" / "grown")
    from_folder = [f"stages.scratch.start={start}", "stages.scratch.zero_stage=2"]
    error = refused(capsys, "train", run, "--stage", "scratch", GROW, *from_folder)
    assert error.endswith(f"--world-size 2 (and start from it: stages.scratch.start={start}-zero2x2)\n")
    sgd = [*from_folder, "stages.scratch.optimizer={kind: sgd}"]
    assert "the state is that of adamw" in refused(capsys, "train", run, "--stage", "scratch", GROW, *sgd)


def test_stage_0_loads_no_shards_and_none_are_written_for_it(run):
    loaded = config.load(run, [GROW])
    stage_0 = large(loaded).model_copy(update={"zero_stage": 0})
    with pytest.raises(UserError, match=r"this stage runs as native ZeRO stage 0, 2 ranks; run it as before$"):
        continues_optimizer(checkpoints.locate(loaded.path / "grown"), stage_0, 2)


def test_a_stage_that_was_begun_and_has_no_checkpoint_starts_from_the_newest(run):
    """It was killed before it had saved: what it recorded as its start is no more than where it had begun."""
    loaded = config.load(run, [GROW])
    start = checkpoints.locate(loaded.path / "grown")
    invented(loaded.path, "large", SMALL, {0: 5.0, 7: 4.0}, start=str(start), finished=False)
    newer = start.with_name(start.name + "-zero1x4")
    shutil.copytree(start, newer)
    assert plan_training(loaded, large(loaded)).start == newer
    shutil.copytree(start, loaded.path / "large" / "checkpoints" / "step-0000005")
    assert plan_training(loaded, large(loaded)).start == start


def test_a_lineage_goes_through_what_was_written_anew(run, capsys):
    def walked(place: Path) -> list[tuple]:
        return [(each.name, each.kind, each.spent, each.training_flops) for each in lineage(place, RecordReader())]

    grown = run.parent / "run" / "grown"
    before, start = walked(grown), checkpoints.locate(grown)
    assert [kind for _, kind, *_ in before] == ["expand", "train"]
    anew = f"{start}-zero3x4"
    assert cli.lemon(capsys, "reshard", start, "--out", anew, "--zero-stage", 3, "--world-size", 4)[0] == 0
    assert walked(grown) == walked(Path(anew)) == before


UNFINISHED = {"small": "is at step 7 of 550", "grown": "was interrupted"}


@pytest.mark.parametrize("source, stage", [("small", "grown"), ("grown", "large")])
def test_a_source_stage_must_be_finished(run, capsys, source, stage):
    """What it was expanded from would be half trained, and the expansion count as finished ever after."""
    folder = run.parent / "run"
    shutil.rmtree(folder / stage, ignore_errors=True)
    facts = StageFolder(folder / source).facts
    StageFolder(folder / source).begin(facts.model_copy(update={"steps": 550} if source == "small" else {}))
    error = refused(capsys, "train", run, "--stage", stage, GROW)
    finish = f"finish it first: lemon train {folder}/config.yaml --stage {source}\n"
    assert error.endswith(finish) and f"{folder / source}: the stage {UNFINISHED[source]}, " in error
    assert not (folder / stage).exists()
    shutil.rmtree(folder / source)
    error = refused(capsys, "train", run, "--stage", stage, GROW)
    assert error.endswith(finish) and "the stage has not begun, " in error


def test_a_checkpoint_of_a_stage_may_be_named_while_it_goes_on(run, capsys):
    folder = run.parent / "run"
    small = StageFolder(folder / "small")
    small.begin(small.facts)
    shutil.rmtree(folder / "grown")
    named = f"stages.grown.source={checkpoints.locate(small.path)}"
    assert cli.lemon(capsys, "train", run, "--stage", "grown", GROW, named)[0] == 0
    assert StageFolder(folder / "grown").finished

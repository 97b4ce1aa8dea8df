"""Where a training stage starts or goes on: what its engine does not load as it is, is resharded first."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline import checkpoints, config, models
from pipeline.accounting.lineage import lineage
from pipeline.accounting.recorded_runs import RecordReader
from pipeline.checkpoints import CheckpointLayout, diff, manifest, publish, retention
from pipeline.config.schema import Config, Retention, TrainStage
from pipeline.data import open_prepared
from pipeline.errors import UserError
from pipeline.records.run_folder import StageFolder
from pipeline.runs import preflight
from pipeline.training import optimizer_kernel, resharded_start
from pipeline.training.fingerprint import Fingerprint
from pipeline.training.micro_batches import as_begun, change, size_of
from pipeline.training.stage import plan_training
from pipeline.training.start import continues_optimizer, stored_layout
from tests.helpers import cli
from tests.helpers.checkpoints import reseal, trained
from tests.helpers.cli import ROOT
from tests.helpers.damage import flip
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


@pytest.fixture
def begun(tmp_path, monkeypatch) -> Path:
    """A run whose stage `large` was interrupted at step 20, in ZeRO 1 on 2 ranks. Returns that checkpoint."""
    shutil.copytree(ROOT / "tests" / "fixtures" / "format-1", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("run/large/checkpoints/step-0000020")


def prepared(source: Path, loaded: Config, ranks: int) -> Path:
    """What the engines of `large` load on `ranks` ranks, once that has been made."""
    resharded_start.prepare(loaded, large(loaded), ranks)
    assert resharded_start.is_prepared(loaded, large(loaded), ranks)
    return resharded_start.place(source, large(loaded), ranks, StageFolder(loaded.path / "large"))


OTHERS = [("stages.large.zero_stage=1", 1), ("stages.large.zero_stage=3", 2), ("stages.large.zero_stage=0", 1)]


@pytest.mark.parametrize("override, ranks", OTHERS)
def test_a_grown_state_is_resharded_for_other_ranks_or_another_stage(run, override, ranks):
    """To the bit the same state, which still says that it was grown."""
    loaded = config.load(run, [GROW, override])
    start = checkpoints.locate(loaded.path / "grown")
    preflight.checkpoints_fit(loaded, loaded.stages, ranks)
    assert continues_optimizer(start, large(loaded), ranks)
    copy = prepared(start, loaded, ranks)
    assert copy.parent == loaded.path / "large" / "resharded" and diff.compare(start, copy).equal
    assert manifest.read(copy).optimizer_state == "grow"
    assert plan_training(loaded, large(loaded)).start == start, "where the stage came from stays"


@pytest.mark.parametrize("override, ranks", OTHERS)
def test_a_begun_stage_is_resharded_and_its_checkpoints_stay_as_they_are(begun, caplog, override, ranks):
    loaded = config.load("tiny.yaml", ["folder=run", override])
    preflight.checkpoints_fit(loaded, loaded.stages, ranks)
    assert not resharded_start.is_prepared(loaded, large(loaded), ranks)
    with caplog.at_level("INFO", "pipeline"):
        copy = prepared(begun, loaded, ranks)
    stage = large(loaded).zero_stage
    assert copy == Path(f"run/large/resharded/step-0000020-zero{stage}x{ranks}") and diff.compare(begun, copy).equal
    layout = CheckpointLayout.of(large(loaded), ranks).words
    told = f"large: goes on as {layout}; {begun}, written as native ZeRO stage 1, 2 ranks, was resharded "
    kept = "kept are sample order, dropout, schedule, and 2 micro-batches of 4 samples a step"
    assert [line for line in caplog.messages if line.startswith(told) and line.endswith(f"to {copy}; {kept}")]
    assert publish.complete(begun.parent) == [begun] and checkpoints.locate(Path("run/large")) == begun
    stages = lineage(Path("run/large"), RecordReader())
    assert [each.kind for each in stages] == ["train", "expand", "train"] and stages[0].training_flops == 23 * 917_376


def test_a_copy_is_used_again_while_it_is_whole_and_of_this_checkpoint(begun):
    loaded = config.load("tiny.yaml", ["folder=run", "stages.large.zero_stage=2"])
    copy = prepared(begun, loaded, 2)
    made = (copy / manifest.NAME).stat().st_ino
    assert prepared(begun, loaded, 2) == copy and (copy / manifest.NAME).stat().st_ino == made
    flip(next(copy.glob("*optim_states.pt")))
    assert prepared(begun, loaded, 2) == copy and diff.compare(begun, copy).equal
    edited = json.loads((begun / manifest.NAME).read_text())
    reseal(begun, {**edited, "seed": 5})
    with pytest.raises(UserError, match=r"runs as native ZeRO stage 2, 2 ranks, and .* run the command again"):
        resharded_start.place(begun, large(loaded), 2, StageFolder(loaded.path / "large"))


def test_there_is_one_copy_and_none_where_the_engine_loads_the_checkpoint_itself(begun):
    place = Path("run/large/resharded")
    for stage in (2, 3):
        loaded = config.load("tiny.yaml", ["folder=run", f"stages.large.zero_stage={stage}"])
        assert [prepared(begun, loaded, 2)] == list(place.iterdir())
    assert prepared(begun, config.load("tiny.yaml", ["folder=run"]), 2) == begun and not place.exists()


def test_a_damaged_checkpoint_is_set_aside_before_anything_is_resharded(begun, caplog):
    older = begun.with_name("step-0000010")
    shutil.copytree(begun, older)
    flip(next(begun.glob("*optim_states.pt")))
    loaded = config.load("tiny.yaml", ["folder=run", "stages.large.zero_stage=2"])
    copy = prepared(older, loaded, 2)
    assert copy.name == "step-0000010-zero2x2" and publish.complete(older.parent) == [older]
    assert "its SHA-256 is not the manifest's" in caplog.text


@pytest.mark.parametrize("text, damage", [('"hidden_size": 12', '"hidden_size": 1!'), ("e-07", "e-08")])
def test_a_damaged_config_is_seen_before_anything_is_planned_by_it(begun, caplog, text, damage):
    """One that is no JSON any more, and one that says something else in as many bytes."""
    older, file = begun.with_name("step-0000010"), begun / checkpoints.CONFIG
    shutil.copytree(begun, older)
    assert text in file.read_text()
    file.write_text(file.read_text().replace(text, damage))
    loaded = config.load("tiny.yaml", ["folder=run"])
    preflight.checkpoints_fit(loaded, loaded.stages, 2)
    assert publish.complete(older.parent) == [older] and f"{file}: its SHA-256 is not the manifest's" in caplog.text
    assert plan_training(loaded, large(loaded)).model.hidden_size == 12


def test_micro_batches_are_those_of_the_start_before(begun):
    """2 of 4 samples, on however many ranks; a config that names another size counts, which is said."""
    loaded, folder = config.load("tiny.yaml", ["folder=run"]), StageFolder(Path("run/large"))
    stage = as_begun(large(loaded), folder)
    assert (stage.micro_batch, [size_of(stage, ranks) for ranks in (1, 2)]) == (4, [4, 4])
    with pytest.raises(UserError, match=r"the 2 micro-batches of 4 samples .* among 4 ranks; start it on 1 or 2,"):
        preflight.before_data(loaded, [4])
    with pytest.raises(UserError, match="do not divide among 4 ranks"):
        resharded_start.prepare(loaded, large(loaded), 4)
    assert not (folder.path / "resharded").exists()
    named = large(config.load("tiny.yaml", ["folder=run", "stages.large.micro_batch=2"]))
    assert as_begun(named, folder) == named
    assert change(named, folder) == "micro_batch was 4, is now 2: dropout draws other masks"
    assert change(stage, folder) is None
    shutil.rmtree(folder.checkpoints)
    assert as_begun(large(loaded), folder).micro_batch is None, "nothing was saved"


def test_zero_0_in_bf16_has_one_micro_batch(begun):
    """On each rank: DeepSpeed would sum more of them in bf16."""
    bf16 = ["folder=run", "stages.large.precision=bf16", "stages.large.zero_stage=0", "stages.large.gradient_sums=fp32"]
    stage = large(config.load("tiny.yaml", [*bf16, "stages.large.micro_batch=4"]))
    assert size_of(stage, 2) == 4
    said = r"stages\.large\.zero_stage: 0 in bf16 sums the 2 micro-batches .*; choose zero_stage 1, .* or gradient_sums"
    with pytest.raises(UserError, match=said):
        size_of(stage, 1)
    with pytest.raises(UserError, match=said):
        preflight.before_data(config.load("tiny.yaml", [*bf16, "stages.large.micro_batch=4", "folder=other"]), [1])
    assert size_of(stage.model_copy(update={"zero_stage": 1}), 1) == 4
    assert size_of(stage.model_copy(update={"gradient_sums": "bf16"}), 1) == 4


def test_a_stage_keeps_the_optimizers_kernel_that_it_began_with(begun):
    """Records of before the fused kernel name none: what ran then goes on."""
    stage, folder = large(config.load("tiny.yaml", ["folder=run"])), StageFolder(Path("run/large"))
    assert "optimizer_kernel" not in json.loads(folder.facts_file.read_text())["settings"]
    assert optimizer_kernel.of_stage(stage, folder, "cpu") == "default"
    facts = json.loads(folder.facts_file.read_text())
    facts["settings"]["optimizer_kernel"] = "fused"
    folder.facts_file.write_text(json.dumps(facts))
    assert optimizer_kernel.of_stage(stage, folder, "cpu") == "fused"
    shutil.rmtree(folder.checkpoints)
    assert [optimizer_kernel.of_stage(stage, folder, device) for device in ("cuda", "xpu")] == ["fused", "default"]


def test_what_was_resharded_by_hand_beside_a_checkpoint_is_the_newer_one(begun, capsys):
    """What was written last is the newest, however often; a copy that somebody has put aside is none of them."""
    folder, newest = begun.parent, begun
    shutil.copytree(begun, folder / "step-0000020-copy")
    for stage in (3, 2, 1):
        out = f"{newest}-zero{stage}x4"
        assert cli.lemon(capsys, "reshard", newest, "--out", out, "--zero-stage", stage, "--world-size", 4)[0] == 0
        newest = publish.newest(folder)
        assert newest == Path(out)
    assert newest.name == "step-0000020-zero3x4-zero2x4-zero1x4"
    assert lineage(Path("run/large"), RecordReader())[0].manifest["zero_stage"] == 1
    retention.prune(folder, Retention(last=1))
    assert sorted(path.name for path in folder.iterdir()) == ["step-0000020-copy", newest.name]


def test_a_start_with_a_grown_state_is_held_to_its_optimizer(run, capsys):
    """A folder that the config names, too."""
    start = checkpoints.locate(run.parent / "run" / "grown")
    other = [f"stages.scratch.start={start}", "stages.scratch.zero_stage=2"]
    sgd = [*other, "stages.scratch.optimizer={kind: sgd}"]
    assert "the state is that of adamw" in refused(capsys, "train", run, "--stage", "scratch", GROW, *sgd)
    rates = [*other, "stages.scratch.optimizer={rates: {hidden: 0.5}}"]
    told = refused(capsys, "train", run, "--stage", "scratch", GROW, *rates)
    assert "is in other groups than stages.scratch.optimizer makes" in told


RATES = "stages.scratch.optimizer={rates: {embeddings: 2}}"


def test_a_fresh_state_in_other_groups_is_not_gone_on_with(run):
    """The weights of an expansion are taken alone."""
    shutil.rmtree(run.parent / "run" / "grown")
    assert cli.main(["train", str(run), "--stage", "grown", "-q"]) == 0
    loaded = config.load(run, ["stages.scratch.start=grown", RATES])
    start = checkpoints.locate(loaded.path / "grown")
    layout = stored_layout(start)
    for stage, goes_on in (("large", True), ("scratch", False)):
        reader = loaded.training_stage(stage).model_copy(update={"zero_stage": layout.zero_stage})
        assert continues_optimizer(start, reader, layout.world_size) is goes_on


def test_stages_of_other_groups_share_no_grown_state(run, capsys):
    """Told before anything is trained."""
    shutil.rmtree(run.parent / "run" / "grown")
    told = refused(capsys, "run", run, "--dry-run", GROW, "stages.scratch.start=grown", RATES)
    assert "stages.scratch.optimizer: its rates make other groups than those of 'large'" in told


def test_an_expansion_of_a_grown_state_goes_by_names(run, capsys):
    """Whatever its reader's groups are: `far` starts from an expansion of `grown`, beside `large`."""
    content = yaml.safe_load(run.read_text())
    grown = next(stage for stage in content["stages"] if stage["name"] == "grown")
    scratch = next(stage for stage in content["stages"] if stage["name"] == "scratch")
    content["models"]["huge"] = {**content["models"]["large"], "layers": content["models"]["large"]["layers"] + 1}
    content["stages"] += [
        {**grown, "name": "again", "source": "grown", "model": "huge", "method": {"name": "lemon", "depth": "zero"}},
        {**scratch, "name": "far", "start": "again", "model": "huge", "optimizer": {"rates": {"embeddings": 2}}},
    ]
    run.write_text(yaml.safe_dump(content))
    more = [GROW, "stages.again.optimizer_state=grow"]
    assert cli.main(["run", str(run), "--dry-run", *more]) == 0, capsys.readouterr().err


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

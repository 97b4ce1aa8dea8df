"""Every start of a stage: in its facts, in the report; another precision only where it is allowed."""

from pathlib import Path

import pytest

from pipeline import config
from pipeline.cli import build_parser
from pipeline.errors import UserError
from pipeline.records.run_folder import StageFolder
from pipeline.report import build, write
from pipeline.runs import preflight
from pipeline.runs.trainings import possible_ranks
from pipeline.training.fingerprint import Fingerprint, require_same
from pipeline.training.launcher import Nodes
from tests.helpers.invented_runs import SETTINGS, SMALL, make_run, train
from tests.helpers.pages import Page
from tests.helpers.runs import tiny_run


def test_the_report_lists_the_starts_of_a_stage_that_had_several(tmp_path):
    run = make_run(tmp_path / "run", {"small": "train"})
    stage = train(run, "small", SMALL, {0: 8.0, 20: 5.0})
    assert "Starts of" not in Page(write(build([run]), run).read_text()).words
    first = stage.facts.starts[0]
    settings = first.settings.model_copy(update={"world_size": 1, "zero_stage": 3})
    second = first.model_copy(update={"step": 12, "settings": settings, "device": "one GPU"})
    stage.finish(stage.facts.model_copy(update={"starts": (first, second)}))
    page = Page(write(build([run]), run).read_text())
    assert "Starts of small" in page.words and not page.crossed
    assert ["0", "2", "1", "fp32", "CPU <x86>", "torch 2.13"] in page.rows
    assert ["12", "1", "3", "fp32", "one GPU", "torch 2.13"] in page.rows


def interrupted(folder: Path) -> StageFolder:
    """A run whose stage `small` was begun in fp32."""
    loaded = config.load(tiny_run(folder))
    settings = Fingerprint.of(loaded, loaded.stage("small")).settings()
    return train(loaded.path, "small", SMALL, {0: 5.0, 7: 4.0}, finished=False, steps=24, fingerprint=settings)


BF16 = "stages.small.precision=bf16"


def test_another_precision_is_refused_by_the_option_that_allows_it(tmp_path):
    folder = interrupted(tmp_path)
    changed = config.load(tmp_path / "tiny.yaml", [BF16])
    with pytest.raises(UserError, match=r"was fp32, is now bf16; go on with it all the same \(--allow precision\)"):
        require_same(changed, changed.stage("small"))
    require_same(changed, changed.stage("small"), {"precision"})
    folder.finish(folder.facts)
    with pytest.raises(UserError, match="was fp32, is now bf16; take another folder"):
        require_same(changed, changed.stage("small"), {"precision"})


def test_nothing_else_is_allowed(tmp_path):
    interrupted(tmp_path)
    changed = config.load(tmp_path / "tiny.yaml", [BF16, "stages.small.batch=32"])
    with pytest.raises(UserError, match=r"stage\.batch was 16, is now 32; take another folder"):
        preflight.before_data(changed, [2], {"precision"})
    with pytest.raises(UserError, match=r"batch was 16, is now 32; stage\.precision was fp32, is now bf16; take"):
        require_same(changed, changed.stage("small"))


def test_one_number_of_nodes_that_suits_the_batch_suffices(tmp_path):
    """--nodes 2:3, of one rank each."""
    loaded = config.load(tiny_run(tmp_path))
    preflight.before_data(loaded, [2, 3])
    with pytest.raises(UserError, match="batch 16 is not a multiple of micro_batch 5 x 3 ranks"):
        preflight.before_data(loaded, [3])
    nodes = Nodes(count=3, fewest=2)
    assert possible_ranks(loaded, nodes) == [4, 6] and possible_ranks(loaded, Nodes(count=2)) == [4]


def test_the_option(capsys):
    for command in ("run", "train"):
        assert build_parser().parse_args([command, "x.yaml", "--allow", "precision"]).allow == ["precision"]
    with pytest.raises(SystemExit):
        build_parser().parse_args(["run", "x.yaml", "--allow", "batch"])
    assert "invalid choice: 'batch'" in capsys.readouterr().err


def test_a_finished_stage_need_not_divide_among_the_ranks_of_today(tmp_path):
    loaded = config.load(tiny_run(tmp_path), ["stages.small.micro_batch=8"])
    loaded = loaded.model_copy(update={"stages": loaded.stages[:1]})
    fingerprint = Fingerprint.of(loaded, loaded.stage("small")).settings()
    with pytest.raises(UserError, match=r"the 2 micro-batches of 8 samples a step .* among 3 ranks; start it on 1 "):
        preflight.before_data(loaded, [3])
    settings = {**SETTINGS, "batch": 16, "micro_batch": 8}
    train(loaded.path, "small", SMALL, {0: 5.0, 7: 4.0}, fingerprint=fingerprint, settings=settings)
    preflight.before_data(loaded, [3])

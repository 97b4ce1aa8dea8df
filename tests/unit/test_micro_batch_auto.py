"""`micro_batch: auto`: what is tried, what a begun stage keeps, and how much memory there is."""

import psutil
import pytest

from pipeline import config
from pipeline.checkpoints import publish
from pipeline.errors import UserError
from pipeline.records.run_folder import StageFolder
from pipeline.training import free_memory
from pipeline.training.micro_batches import as_begun, candidates, change, divide, size_of
from tests.helpers.cli import lemon
from tests.helpers.invented_runs import SMALL, train
from tests.helpers.runs import tiny_run


def small(folder, *overrides):
    loaded = config.load(tiny_run(folder), ["stages.small.micro_batch=auto", *overrides])
    return loaded, loaded.training_stage("small")


@pytest.mark.parametrize("batch, ranks, sizes", [(16, 2, [8, 4, 2, 1]), (96, 2, [48, 24, 12, 6, 3]), (6, 2, [3])])
def test_a_share_of_the_batch_is_halved_as_long_as_it_is_even(tmp_path, batch, ranks, sizes):
    _, stage = small(tmp_path, f"stages.small.batch={batch}")
    assert candidates(stage, ranks) == sizes and size_of(stage, ranks) == sizes[0]
    assert not divide(stage, 5)
    with pytest.raises(UserError, match=f"batch {batch} is not a multiple of micro_batch"):
        candidates(stage, 5)


def test_a_begun_stage_keeps_what_was_found(tmp_path):
    loaded, stage = small(tmp_path)
    assert as_begun(stage, StageFolder(loaded.path / "small")).micro_batch == "auto"
    begun = train(loaded.path, "small", SMALL, {0: 5.0, 7: 4.0}, finished=False)
    checkpoint = begun.checkpoints / "step-0000007"
    publish.publish(publish.staging(checkpoint), checkpoint, {"kind": "train", "step": 7})
    assert as_begun(stage, begun).micro_batch == 2 and change(stage, begun) is None


def test_a_fit_does_not_take_it_over(tmp_path):
    loaded = config.load(tiny_run(tmp_path), ["stages.large.micro_batch=auto", "stages.grown.method=ligo"])
    assert loaded.fit_of(loaded.stage("grown")).micro_batch is None


def test_other_words_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"stages\.small\.micro_batch: must be a whole number or 'auto' \(got 'most'\)"):
        config.load(tiny_run(tmp_path), ["stages.small.micro_batch=most"])


def test_the_dry_run_says_that_it_will_be_found(tmp_path, capsys):
    code, out, _ = lemon(capsys, "run", tiny_run(tmp_path), "--dry-run", "stages.small.micro_batch=auto")
    assert code == 0 and "note         stages.small.micro_batch: auto: shown is 8, the most; as it begins" in out


def test_a_container_has_what_its_limit_leaves(tmp_path):
    available = psutil.virtual_memory().available
    assert free_memory.of_host(tmp_path) == pytest.approx(available, rel=0.2), "no cgroup"
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_memory.of_host(tmp_path) == 300
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory.of_host(tmp_path) == pytest.approx(available, rel=0.2)


def test_ranks_of_a_host_share_it(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory.of_rank() == pytest.approx(free_memory.of_host() / 4, rel=0.2)

"""Saving in the background: the files are DeepSpeed's own, nothing half-made or spoilt is published, no rank is left
behind."""

import os
import signal
import subprocess
from pathlib import Path
from unittest import mock

import pytest
import torch

from pipeline import models
from pipeline.accounting.save_copy import save_copy
from pipeline.checkpoints import manifest
from pipeline.cli import main
from pipeline.models.optimizer_groups import state_numbers
from pipeline.training.save_in_flight import SaveInFlight
from tests.helpers import cli
from tests.helpers.cli import environment_kept, lemon_here
from tests.helpers.parity_task import model_config, stage
from tests.helpers.processes import in_a_child
from tests.helpers.rotation import rotated
from tests.helpers.runs import copied, ledger, losses, records
from tests.helpers.scripts.saving import FAMILY

JOBS = "tests.helpers.scripts.saving:"
OPTIMIZERS = {"adamw": {"kind": "adamw"}, "sgd": {"kind": "sgd", "momentum": 0.9}}


def same(a: object, b: object, place: str = "") -> None:
    """Every object of two files of torch.save, tensors to the bit."""
    assert type(a) is type(b), place
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape, a.stride(), a.storage_offset()) == (b.dtype, b.shape, b.stride(), b.storage_offset())
        assert a.requires_grad == b.requires_grad and vars(a).keys() == vars(b).keys(), place
        assert a.untyped_storage().tolist() == b.untyped_storage().tolist(), place
    elif isinstance(a, dict):
        assert list(a) == list(b), place
        for key in a:
            same(a[key], b[key], f"{place}.{key}")
        same(getattr(a, "__dict__", None), getattr(b, "__dict__", None), f"{place}.__dict__")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), place
        for number, (left, right) in enumerate(zip(a, b, strict=True)):
            same(left, right, f"{place}.{number}")
    elif hasattr(a, "__dict__"):
        same(vars(a), vars(b), place)
    else:
        assert a == b, place


def storages(tree: object) -> list[int]:
    """The number of each tensor's storage, in order: equal where tensors share one."""
    found: list[int] = []

    def walk(node: object) -> None:
        if isinstance(node, torch.Tensor):
            found.append(node.untyped_storage()._cdata)
        elif isinstance(node, dict | list | tuple):
            for each in node.values() if isinstance(node, dict) else node:
                walk(each)

    walk(tree)
    return [found.index(each) for each in found]


@rotated(one_in=4, of=("zero_stage", "precision", "kind"))
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_the_files_are_deepspeeds(workers, tmp_path, zero_stage, precision, kind):
    """Object by object, although the training went on while they were written; the copy's memory is used again."""
    fields = {"zero_stage": zero_stage, "precision": precision, "optimizer": OPTIMIZERS[kind]}
    places = {"own": str(tmp_path), "ours": str(tmp_path)}
    first, second = workers.run(f"{JOBS}both_ways", {"stage": fields, **places}, world=2)
    assert first == second
    architecture, saved = models.architecture_of(model_config(FAMILY)), stage(micro_batch=1, **fields)
    kept = state_numbers(architecture, saved.optimizer)
    assert first == pytest.approx(save_copy(saved, architecture.parameters, kept, world=2), rel=0.1)
    ours = tmp_path / "step-0000001"
    names = sorted(path.name for path in (tmp_path / "own").iterdir())
    assert sorted(manifest.verify(ours).files) == sorted([*names, "config.json"])
    for name in names:
        files = [torch.load(folder / name, weights_only=False) for folder in (tmp_path / "own", ours)]
        same(*files)
        assert storages(files[0]) == storages(files[1])
    assert not list(tmp_path.glob(".*")) and manifest.verify(tmp_path / "step-0000002").step == 2


def test_numbers_that_are_not_finite_are_not_published(workers, tmp_path):
    """One NaN in the last rank's part: its thread finds it, a step tells all ranks, every rank says it."""
    job = {"stage": {"zero_stage": 1}, "folder": str(tmp_path), "spoilt": "weights"}
    answer = workers.run(f"{JOBS}refused", job, world=2)
    assert answer["stops"]
    assert "step-0000002 is not published, what was saved before it stays" in answer["told"]
    assert "'optimizer_state_dict.single_partition_of_fp32_groups.0' of zero_pp_rank_1" in answer["told"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    manifest.verify(tmp_path / "step-0000001")


def test_what_pads_a_share_of_stage_3_may_be_anything(workers, tmp_path):
    job = {"stage": {"zero_stage": 3}, "folder": str(tmp_path), "spoilt": "padding"}
    assert workers.run(f"{JOBS}refused", job, world=2)["told"] is None
    manifest.verify(tmp_path / "step-0000002")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_disk(workers, tmp_path):
    """The second checkpoint does not fit: all ranks say so, the first stays."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"the kernel forbids mounting: {mounted.stderr.decode().strip()}")
    try:
        job = {"stage": {"zero_stage": 1}, "folder": str(tmp_path), "spoilt": "none"}
        answer = workers.run(f"{JOBS}refused", job, world=2)
        assert "cannot be written (" in answer["told"] and "make room and run the command again" in answer["told"]
        assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
        manifest.verify(tmp_path / "step-0000001")
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)  # a worker may still be closing its files


def test_a_save_waits_for_the_last(workers, tmp_path):
    first, second, third = workers.run(f"{JOBS}slow", {"stage": {"zero_stage": 1}, "folder": str(tmp_path)}, world=2)
    assert first < 0.5 <= min(second, third) + 0.1
    for number in (1, 2, 3):
        manifest.verify(tmp_path / f"step-000000{number}")


def test_blocking_is_published_at_once(workers, tmp_path):
    job = {"stage": {"zero_stage": 2, "save": "blocking"}, "folder": str(tmp_path)}
    assert min(workers.run(f"{JOBS}slow", job, world=2)) >= 0.5
    manifest.verify(tmp_path / "step-0000003")


def killed_midway(flight: SaveInFlight) -> None:
    """In place of `_write`: rank 1 dies in the middle of the checkpoint of step 10."""
    if flight.publication.final.name.endswith("10") and flight.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    WRITE(flight)


WRITE = SaveInFlight._write


def test_a_kill_during_the_write_leaves_the_older_checkpoint(finished, tmp_path):
    path, run = copied(finished, tmp_path), tmp_path / "run"

    def dying() -> int:
        with environment_kept(), mock.patch.object(SaveInFlight, "_write", killed_midway):
            return main(["train", str(path), "--stage", "small"])

    assert in_a_child(dying, tmp_path / "said").code not in (0, None)
    left = sorted(each.name for each in (run / "small" / "checkpoints").glob("*"))
    assert left == [".staging-step-0000010", "step-0000005"]
    kept = manifest.read(run / "small" / "checkpoints" / "step-0000005")
    lemon_here("train", path, "--stage", "small", "hash=sha256")  # which may change between two starts
    assert losses(run, "small") == losses(finished / "run", "small")
    assert ledger(run, "small") == ledger(finished / "run", "small")
    newest = manifest.read(run / "small" / "checkpoints" / "step-0000024")
    sealed = [{file.algorithm for file in content.files.values()} for content in (kept, newest)]
    assert sealed == [{"blake3"}, {"sha256"}]
    assert not list((run / "small" / "checkpoints").glob(".*"))


def test_pauses_and_publications_are_recorded(finished):
    saves = [record for record in records(finished / "run", "small") if record["kind"] == "save"]
    assert [record["step"] for record in saves] == [5, 10, 15, 20, 24]
    assert all(record["save_seconds"] > 0 and record["published_seconds"] > 0 for record in saves)


def test_the_best_stays(finished, tmp_path, capfd):
    """Its loss is in its manifest, and a plain number still means the last."""
    path, run = copied(finished, tmp_path), tmp_path / "run"
    keep = ["stages.small.keep={last: 1, every: 16, best: true}", "stages.small.evaluate_every=4 steps"]
    code, _, said = cli.lemon(capfd, "train", path, "--stage", "small", "stages.small.save_every=8 steps", *keep)
    assert code == 0, said
    evaluated = {record["step"]: record["eval_loss"] for record in records(run, "small") if "eval_loss" in record}
    best = min((8, 16, 24), key=evaluated.__getitem__)
    folder = Path(run / "small" / "checkpoints")
    assert {each.name for each in folder.iterdir()} == {f"step-{step:07d}" for step in {best, 16, 24}}
    assert manifest.read(folder / "step-0000024").facts()["eval_loss"] == evaluated[24]

"""The fit of a learned method as a stage: what it leaves, what its expansion takes of it, that nothing depends on how
it was run."""

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from pipeline import checkpoints
from pipeline.growth import methods
from pipeline.records.stage_records import BESIDE
from tests.helpers.cli import lemon, lemon_here, start_lemon
from tests.helpers.docs_code import python_of
from tests.helpers.invented_text import some_documents, text_file
from tests.helpers.rotation import rotated
from tests.helpers.runs import copied, ledger, records
from tests.helpers.waiting import wait_for

GROWTH = Path(__file__).parents[2] / "docs" / "growth.md"
STEPS = 12
LIGO = "stages.grown.method={name: ligo, width_init: sel, maps: tied}"
FIT = "stages.grown.fit={steps: 12, micro_batch: 8, evaluate_every: 4 steps, save_every: 3 steps, dropout: 0.1}"


@pytest.fixture(scope="module")
def fitted(finished, tmp_path_factory) -> Path:
    """A chain from ZeRO-2 shards of two ranks by LiGO to a ZeRO-1 run of two ranks."""
    folder = tmp_path_factory.mktemp("fitted")
    lemon_here("run", copied(finished, folder, "small", "scratch"), LIGO, FIT)
    return folder / "run"


def coefficients(run: Path) -> dict[str, Tensor]:
    state = checkpoints.raw(checkpoints.locate(run / "grown-fit"))
    return {name: tensor.tensor() for name, tensor in state.tensors.items()}


def evaluations(run: Path, stage: str) -> list[float]:
    return [record["eval_loss"] for record in records(run, stage) if "eval_loss" in record]


def spent(run: Path, stage: str, *kinds: str) -> int:
    return sum(entry["flops"] for entry in ledger(run, stage) if not kinds or entry["kind"] in kinds)


def test_what_was_fitted_is_what_goes_on(fitted):
    """The next stage begins with the loss that the fit has ended with: what it was evaluated on is what was written."""
    during = evaluations(fitted, "grown-fit")
    assert len(during) == 1 + STEPS // 4 and during[-1] < during[0]
    assert evaluations(fitted, "large")[0] == pytest.approx(during[-1], abs=1e-5)
    manifest = json.loads((checkpoints.locate(fitted / "grown") / "manifest.json").read_text())
    assert manifest["provenance"]["samples"]["next"] == 24 * 16, "as far as the source: the fit has read less"
    assert manifest["fit"]["steps"] == STEPS and manifest["fit"]["loss"] == [during[0], during[-1]]
    assert {"plan.json", "plan.safetensors"} <= set(manifest["files"])
    facts = json.loads((fitted / "grown-fit" / "stage.json").read_text())
    assert facts["kind"] == "fit" and facts["coefficients"] == sum(t.numel() for t in coefficients(fitted).values())


def test_every_flop_of_the_fit_is_charged(fitted):
    """A line of its own for the weights that are made; in both savings; in what the result says that it has cost."""
    facts = json.loads((fitted / "grown-fit" / "stage.json").read_text())
    per_step = facts["flops_per_step"]
    assert all(spent(fitted, "grown-fit", kind) == STEPS * per_step[kind] for kind in ("train", *BESIDE))
    assert all(per_step[kind] for kind in ("train", "recompute", "make"))
    assert spent(fitted, "grown-fit", "evaluate-make") > 0
    training = spent(fitted, "grown-fit", "train", *BESIDE)
    report = json.loads((fitted / "report.json").read_text())["runs"][0]
    (one,) = report["comparisons"]
    assert one["expansion"]["fit_flops"] == training
    assert one["curves"]["expanded"][0]["flops"] == training, "the curve begins behind the fit"
    assert one["source"]["flops"] == spent(fitted, "small", "train", *BESIDE)
    rows = {(row["stage"], row["kind"]): row["flops"] for row in report["ledger"]["rows"]}
    assert rows["grown-fit", "make"] == STEPS * per_step["make"]
    page = (fitted / "report.html").read_text()
    assert "grown-fit" in page and "making of the weights" in page
    newest = json.loads((checkpoints.locate(fitted / "large") / "manifest.json").read_text())
    assert newest["provenance"]["flops"] == sum(spent(fitted, s) for s in ("small", "grown-fit", "grown", "large"))


def test_one_rank_fits_what_two_fit(fitted, finished, tmp_path):
    """Up to the order in which float32 numbers are added: AdamW divides a gradient by its own size."""
    lemon_here("train", copied(finished, tmp_path, "small"), "--stage", "grown", LIGO, FIT, "processes=1")
    ours, theirs = coefficients(tmp_path / "run"), coefficients(fitted)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    assert evaluations(tmp_path / "run", "grown-fit") == pytest.approx(evaluations(fitted, "grown-fit"), abs=1e-5)


@rotated(one_in=2, of="zero_stage")
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_other_stages_fit_the_same(fitted, finished, tmp_path, zero_stage):
    other = f"stages.grown.fit.zero_stage={zero_stage}"
    lemon_here("train", copied(finished, tmp_path, "small"), "--stage", "grown", LIGO, FIT, other)
    assert evaluations(tmp_path / "run", "grown-fit") == pytest.approx(evaluations(fitted, "grown-fit"), abs=1e-5)


def test_a_fit_that_is_killed_ends_as_one_that_was_not(fitted, finished, tmp_path):
    """To the bit, whenever it is."""
    path, run, moment = copied(finished, tmp_path, "small"), tmp_path / "run", random.SystemRandom().randrange(1, STEPS)
    process = start_lemon(tmp_path / "said", "train", path, "--stage", "grown", LIGO, FIT)
    wait_for(lambda: len([r for r in records(run, "grown-fit") if "loss" in r]) >= moment)
    os.kill(process.pid, signal.SIGKILL)
    process.end()
    lemon_here("train", path, "--stage", "grown", LIGO, FIT)
    ours, theirs = coefficients(run), coefficients(fitted)
    different = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    assert not different, f"killed behind step {moment}: {different}"
    assert ledger(run, "grown-fit") == ledger(fitted, "grown-fit")


def test_the_dry_run_says_what_it_costs(fitted, capsys):
    code, out, _ = lemon(capsys, "run", fitted / "config.yaml", "--dry-run", "--json")
    assert code == 0
    stage = next(stage for stage in json.loads(out)["stages"] if stage["name"] == "grown-fit")
    assert stage["status"] == "finished" and set(stage["memory"]["zero_stages"]) == {"0", "1", "2"}
    assert stage["coefficients"] == sum(tensor.numel() for tensor in coefficients(fitted).values())
    assert stage["flops"]["train"] == spent(fitted, "grown-fit", "train", *BESIDE)
    assert stage["flops"]["evaluation"] == spent(fitted, "grown-fit", "evaluate", "evaluate-make")


def test_offline_it_is_fitted_in_a_folder_of_its_own(finished, tmp_path, capfd):
    """From a stage's checkpoint, to another model of the config, on the config's data; it can be applied again, and its
    steps measured."""
    growth = ("--source", finished / "run" / "small", "--target", f"{finished / 'tiny.yaml'}:large", "--method", "ligo")
    fit = ("--data", finished / "tiny.yaml", "--fit", "steps=3", "--fit", "batch=16", "--fit", "peak=1e-4")
    lemon_here("expand", *growth, *fit, "--fit", "accept=true", "--out", tmp_path / "out")
    lemon_here("expand", *growth[:2], "--operator", tmp_path / "out", "--out", tmp_path / "again")
    code, out, _ = lemon(capfd, "diff", tmp_path / "out", tmp_path / "again")
    assert code == 0, out
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["fit"]["steps"] == 3
    before = json.loads((checkpoints.locate(finished / "run" / "small") / "manifest.json").read_text())
    learning = spent(tmp_path / "out.fit", "grown-fit")
    assert manifest["fit"]["flops"] == learning
    assert manifest["provenance"]["flops"] - before["provenance"]["flops"] > learning > 0
    profile = ("profile", tmp_path / "out.fit" / "config.yaml", "--stage", "grown-fit", "--steps", 1, "--json")
    code, out, error = lemon(capfd, *profile)
    assert code == 0 and json.loads(out)["work"]["again"] > 0, error


def begun_from(fitted: Path, finished: Path, folder: Path) -> Path:
    """The config of a run that has fitted and not yet grown."""
    path = copied(finished, folder, "small")
    shutil.copytree(fitted / "grown-fit", folder / "run" / "grown-fit")
    return path


def test_damaged_coefficients_grow_nothing(fitted, finished, tmp_path, capsys):
    path = begun_from(fitted, finished, tmp_path)
    damaged = next(checkpoints.locate(tmp_path / "run" / "grown-fit").glob("*optim_states.pt"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    code, _, error = lemon(capsys, "train", path, "--stage", "grown", LIGO, FIT)
    assert code == 2 and error.count("\n") == 1 and f"{damaged}: its BLAKE3 is not the manifest's" in error


def test_coefficients_grow_the_source_that_they_were_fitted_to(fitted, finished, tmp_path, capsys):
    """And no other one in its place."""
    path = begun_from(fitted, finished, tmp_path)
    older, newest = sorted((tmp_path / "run" / "small" / "checkpoints").iterdir())[-2:]
    shutil.rmtree(newest)
    older.rename(newest)
    code, _, error = lemon(capsys, "train", path, "--stage", "grown", LIGO, FIT)
    assert code == 2 and error.count("\n") == 1 and "as it was then" in error and "holds other numbers" in error
    assert not (tmp_path / "run" / "grown").exists(), "before anything is written"


def test_what_a_fit_inherited_it_keeps(fitted, finished, tmp_path):
    """The stage behind it may get another batch when the fit has ended."""
    path = begun_from(fitted, finished, tmp_path)
    lemon_here("train", path, "--stage", "grown", LIGO, FIT, "stages.large.batch=8")
    lemon_here("train", path, "--stage", "large", LIGO, FIT, "stages.large.batch=8")


def test_a_fit_that_gets_worse_is_published_on_request_only(finished, tmp_path, capsys):
    path = copied(finished, tmp_path, "small")
    lossless, wild = "stages.grown.method=ligo", FIT.replace("micro_batch", "peak: 0.5, micro_batch")
    code, _, error = lemon(capsys, "train", path, "--stage", "grown", lossless, wild)
    assert code == 2 and error.count("\n") == 1 and "above its start" in error, error
    assert not (tmp_path / "run" / "grown").exists()
    lemon_here("train", path, "--stage", "grown", lossless, wild, "stages.grown.fit.accept=true")
    assert json.loads((tmp_path / "run" / "grown" / "stage.json").read_text())["status"] == "finished"


def test_without_steps_the_coefficients_stay_as_they_start(finished, tmp_path):
    """An arm of its own: from LEMON's maps it computes what the source does."""
    path = copied(finished, tmp_path, "small")
    lemon_here("train", path, "--stage", "grown", "stages.grown.method=ligo", "stages.grown.fit={steps: 0}")
    run = tmp_path / "run"
    assert not (run / "grown-fit").exists()
    measured = json.loads((run / "grown" / "stage.json").read_text())["verification"]
    assert measured["float64"] < measured["gates"]["float64"]
    assert json.loads((checkpoints.locate(run / "grown") / "manifest.json").read_text())["fit"]["flops"] == 0


def test_the_learned_method_of_the_docs(finished, tmp_path, monkeypatch):
    """Its code in 40 lines is fitted as it stands, and starts as `fpi`."""
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    code = python_of(GROWTH, "A learned method of your own")
    exec(compile(code, str(GROWTH), "exec"), {"__name__": "example"})
    assert len(code[code.index("class ") :].strip().splitlines()) <= 40
    mixed = ("stages.grown.method=mixed", "stages.grown.fit={steps: 6, save_every: 3 steps}")
    lemon_here("train", copied(finished, tmp_path, "small"), "--stage", "grown", *mixed)
    run = tmp_path / "run"
    during = evaluations(run, "grown-fit")
    assert during[-1] < during[0]
    fpi = copied(finished, tmp_path / "fpi", "small")
    lemon_here("train", fpi, "--stage", "grown", "stages.grown.method=fpi")
    lemon_here("train", fpi, "--stage", "large", "stages.grown.method=fpi", "stages.large.schedule.fraction=0.3")
    assert evaluations(tmp_path / "fpi" / "run", "large")[0] == pytest.approx(during[0], abs=1e-5)


def text_run(folder: Path, family: str) -> Path:
    """The config of a chain of language models on invented words."""
    rate = {"peak": 2e-3, "warmup": "2 steps", "horizon": "8 steps"}
    train = {"kind": "train", "batch": 8, "evaluate_every": "4 steps", "schedule": rate, "attention": "sdpa"}
    model = {"family": family, "layers": 2, "hidden": 24, "heads": 3}
    text = {"kind": "text", "dataset": str(text_file(folder / "words.txt", some_documents()))}
    content = {
        "name": "words",
        "folder": str(folder / "run"),
        "processes": 2,
        "data": {**text, "tokenizer": {"vocab_size": 200}, "block": 32, "evaluation_blocks": 8},
        "models": {"small": model, "large": {**model, "layers": 3, "hidden": 40, "heads": 5}},
        "stages": [
            {**train, "name": "small", "model": "small", "zero_stage": 2},
            {"kind": "expand", "name": "grown", "source": "small", "model": "large", "method": "ligo"},
            {**train, "name": "large", "model": "large", "start": "grown", "zero_stage": 1},
        ],
    }
    path = folder / "words.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@rotated(one_in=3, of=("family", "fit"))
@pytest.mark.parametrize(
    "family, fit, across",
    [
        ("bert-pre-ln", "{steps: 6, precision: bf16}", "true"),
        ("bert-pre-ln", "{steps: 6, preset: published}", "false"),
        ("llama", "{steps: 6}", "true"),
    ],
)
def test_language_models(tmp_path, family, fit, across):
    """In bf16 the fit's evaluations round more than what is grown from its float32 coefficients."""
    changes = f"stages.grown.fit={fit}", "stages.grown.fit.accept=true", f"data.cross_document={across}"
    lemon_here("run", text_run(tmp_path, family), *changes)
    run = tmp_path / "run"
    close = 2e-2 if "bf16" in fit else 1e-5
    assert evaluations(run, "large")[0] == pytest.approx(evaluations(run, "grown-fit")[-1], abs=close)
    rates = [record["lr"] for record in records(run, "grown-fit") if "lr" in record]
    if "published" in fit:
        assert rates == pytest.approx([step * 2e-4 / 10_000 for step in range(6)], abs=1e-15)

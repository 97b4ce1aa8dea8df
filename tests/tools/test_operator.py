"""The growth of an expansion, applied again: to the bit, to checkpoints of its source's shape only, from files that are
as they were written. And a method that learns, in the tools that work without a run."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import pipeline
from pipeline import checkpoints
from pipeline.growth import plan_file
from tests.helpers.checkpoints import change, saved, target_config_file
from tests.helpers.cli import lemon
from tests.helpers.growing import times
from tests.helpers.runs import tiny_run

UNFITTED = {"steps": 0}


def expanded(folder: Path, variant: str, method: str, out: str, **options: object) -> Path:
    """`small` grown to twice its width and one more layer; a learned method as it starts."""
    target = target_config_file(folder / "target.json", variant, **times(2, layers=3))
    fit = UNFITTED if method == "ligo" else None
    grown = pipeline.expand(folder / "small", target, folder / out, method, method_options=options, fit=fit, workers=1)
    return grown.path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state, _ = checkpoints.read(checkpoints.locate(folder))
    return {name: tensor.tensor().float() for name, tensor in state.tensors.items()}


@pytest.mark.parametrize(
    "variant, method, options",
    [
        ("vit", "ligo", {"width_init": "rand-eta", "depth_init": "interleave"}),
        ("bert-pre-ln", "ligo", {}),
        ("bert", "net2net", {}),
        ("gpt2", "lemon", {"depth": "cancel"}),
    ],
    ids=["vit-ligo", "bert-pre-ln-ligo", "bert-net2net", "gpt2-lemon"],
)
def test_it_grows_another_source_as_its_own_method_would(tmp_path, variant, method, options):
    small = saved(tmp_path / "small", variant)
    first = expanded(tmp_path, variant, method, "first", **options)
    change(small, lambda tensors: [tensor.mul_(1.5) for tensor in tensors.values()])
    again = pipeline.expand(small, None, tmp_path / "again", operator=first, workers=1)
    ours, theirs = weights(again.path), weights(expanded(tmp_path, variant, method, "directly", **options))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    written = json.loads((again.path / "manifest.json").read_text())
    assert written["operator"]["path"] == str(first) and written["method"] == method
    configs = [json.loads((folder / "config.json").read_text()) for folder in (again.path, first)]
    assert configs[0] == configs[1]


@pytest.fixture(scope="module")
def operator(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("operator")
    saved(folder / "small", "vit")
    return expanded(folder, "vit", "ligo", "large", width_init="sel", maps="tied")


def tampered(operator: Path, folder: Path, name: str) -> Path:
    copy = shutil.copytree(operator, folder / "copy")
    content = bytearray((copy / name).read_bytes())
    content[-3] ^= 1
    (copy / name).write_bytes(content)
    return copy


def refused(capsys, *arguments: object) -> str:
    """The one line with which a command is refused."""
    code, _, error = lemon(capsys, *arguments)
    assert code == 2 and error.count("\n") == 1 and error.startswith("lemon: "), error
    return error


@pytest.mark.parametrize("name", [plan_file.PLAN, plan_file.TENSORS, checkpoints.CONFIG])
def test_a_file_that_was_changed_is_refused(operator, tmp_path, capsys, name):
    copy, out = tampered(operator, tmp_path, name), tmp_path / "out"
    said = refused(capsys, "expand", "--source", operator.parent / "small", "--operator", copy, "--out", out)
    assert f"{copy / name}: its BLAKE3 is not the manifest's" in said and not out.exists()


@pytest.mark.parametrize(
    "sizes, complaint",
    [
        ({"hidden": 16, "heads": 4, "mlp": 32}, "plans a growth of embed 12 -> 24"),
        ({"layers": 3}, "plans a growth of layers 2 -> 3, and these two models have 3 -> 3"),
    ],
    ids=["width", "depth"],
)
def test_a_source_of_another_shape_is_refused(operator, tmp_path, capsys, sizes, complaint):
    other, out = saved(tmp_path / "other", "vit", **sizes), tmp_path / "out"
    said = refused(capsys, "expand", "--source", other, "--operator", operator, "--out", out)
    assert complaint in said and "name the result of an expansion from a source of the same shape" in said
    assert not out.exists()


def test_a_source_without_the_operators_head_is_refused(operator, tmp_path, capsys):
    other, out = saved(tmp_path / "other", "vit encoder"), tmp_path / "out"
    said = refused(capsys, "expand", "--source", other, "--operator", operator, "--out", out)
    assert "grows 'embeddings.cls_token' to shape None" in said and not out.exists()


def test_what_is_no_operator_is_refused(operator, tmp_path, capsys):
    small, out = operator.parent / "small", tmp_path / "out"
    assert "holds no operator of an expansion" in refused(
        capsys, "expand", "--source", small, "--operator", small, "--out", out
    )
    said = refused(capsys, "expand", "--source", small, "--operator", operator, "--method", "fpi", "--out", out)
    assert "an operator has its own target, method and seed" in said
    assert "what to grow to is not said" in refused(capsys, "expand", "--source", small, "--out", out)


def test_verify_measures_with_it(operator, capsys):
    code, out, _ = lemon(capsys, "verify", operator.parent / "small", operator, "--json")
    measured = json.loads(out)
    assert code == 1 and measured["method"] == "ligo" and measured["float64"] > measured["gates"]["float64"]


def test_the_plan_says_what_a_fit_takes(operator, capsys):
    growth = ("--source", operator.parent / "small", "--target", operator, "--method", "ligo")
    code, out, _ = lemon(capsys, "plan", *growth, "--json")
    fit = json.loads(out)["fit"]
    assert code == 0 and fit["coefficients"] > 0 and fit["memory"] > 16 * fit["coefficients"]
    once = sum(fit["making"].values())
    assert (
        fit["flops"]["making"] == 100 * 256 // 32 * once and fit["flops"]["making_charged_per_sample"] == 25600 * once
    )
    code, out, _ = lemon(capsys, "plan", *growth)
    assert "charges each sample" in out and "dense maps: " in out
    code, out, _ = lemon(capsys, "plan", "--source", operator.parent / "small", "--operator", operator, "--json")
    assert json.loads(out)["fit"] is None and json.loads(out)["needs"]["read"] > 0


@pytest.mark.parametrize(
    "variant, complaint",
    [
        ("vit", "the model has num_channels 3, the data 1"),
        ("vit encoder", "the model has no head, and so no loss"),
        ("distilbert token-classifier", "the data have no labels for its head (token-classifier), and so no loss"),
        ("gpt2", "the data are images, which family 'gpt2' does not read"),
    ],
    ids=["channels", "bare", "head", "family"],
)
def test_data_that_a_model_cannot_be_fitted_on_are_refused(tmp_path, capsys, variant, complaint):
    small = saved(tmp_path / "small", variant)
    target = target_config_file(tmp_path / "target.json", variant, **times(2))
    growth = ("--source", small, "--target", target, "--method", "ligo", "--out", tmp_path / "out")
    said = refused(capsys, "expand", *growth, "--data", tiny_run(tmp_path), "--fit", "batch=8")
    assert complaint in said and not (tmp_path / "out").exists() and not (tmp_path / "out.fit" / "grown-fit").exists()


@pytest.mark.parametrize(
    "more, complaint",
    [
        ([], "method 'ligo' learns its maps, and has no data to be fitted on"),
        (["--fit", "velocity=3"], "keys of the fit: velocity: unknown key; known: accept, attention, batch"),
        (["--fit", "steps=many"], "keys of the fit: steps: must be a whole number"),
        (["--fit", "steps"], "--fit 'steps': an option is written key=value, such as steps=30"),
        (["--method-option", "maps=tied"], "width_init 'lossless' needs maps 'untied'"),
    ],
    ids=["no data", "unknown key", "no number", "no value", "tied"],
)
def test_a_fit_that_cannot_be_is_refused(operator, tmp_path, capsys, more, complaint):
    growth = ("--source", operator.parent / "small", "--target", operator.parent / "target.json", "--method", "ligo")
    assert complaint in refused(capsys, "expand", *growth, "--out", tmp_path / "out", *more)
    assert not list(tmp_path.iterdir())


def test_data_for_a_method_that_learns_nothing_are_refused(operator, tmp_path, capsys):
    growth = ("--source", operator.parent / "small", "--target", operator.parent / "target.json")
    said = refused(capsys, "expand", *growth, "--out", tmp_path / "out", "--fit", "steps=3")
    assert "are for methods that learn" in said

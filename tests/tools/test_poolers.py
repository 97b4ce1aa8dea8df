"""Encoders without a pooler: their files decide, nothing is made up, and what grows of them loads as they do."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import pipeline
from pipeline import checkpoints, models
from pipeline.checkpoints import manifest
from tests.helpers.checkpoints import change, saved, target_config_file
from tests.helpers.cli import lemon
from tests.helpers.growing import times
from tests.helpers.pretrained import tokens
from tests.helpers.samples import sample
from tests.helpers.variations import edit

LOADERS = {
    "bert": (transformers.BertModel, "bert"),
    "roberta": (transformers.RobertaModel, "roberta"),
    "xlm-roberta": (transformers.XLMRobertaModel, "roberta"),
    "camembert": (transformers.CamembertModel, "roberta"),
}
POOLER = {"pooler.dense.weight", "pooler.dense.bias"}
LINE = "there is no pooler: the model is that of {}.from_pretrained(…, add_pooling_layer=False), and only its"


def bare(folder: Path, family: str) -> Path:
    """As a user saves an encoder that was built without a pooler: the config does not say it."""
    saved(folder, f"{family} encoder")
    return change(folder, lambda tensors: [tensors.pop(name) for name in POOLER])


def of_a_head(folder: Path, family: str) -> Path:
    """A masked language model's file, whose config names the bare encoder."""
    return edit(saved(folder, family), architectures=[LOADERS[family][0].__name__])


def expanded(capsys, small: Path, family: str, *more: object) -> tuple[int, str, str]:
    target = target_config_file(small.parent / "target.json", f"{family} encoder", **times(2, layers=2))
    out = ["--out", small.parent / "large"]
    return lemon(capsys, "expand", "--source", small, "--target", target, *out, *more)


def last_hidden(loader: type, folder: Path, **options: object) -> tuple[Tensor, set[str]]:
    """The last hidden state in float64, and the parameters that `from_pretrained` initialises."""
    model, report = loader.from_pretrained(folder, output_loading_info=True, **options)
    with torch.no_grad():
        output = model.double().eval()(**tokens(folder, 12)).last_hidden_state
    return output, set(report["missing_keys"])


@pytest.mark.parametrize("make", [bare, of_a_head], ids=["saved so", "of a head"])
@pytest.mark.parametrize("family", LOADERS)
def test_it_grows_and_loads_in_both_ways(tmp_path, capsys, family, make):
    small, (loader, _) = make(tmp_path / "small", family), LOADERS[family]
    code, out, err = expanded(capsys, small, family)
    assert code == 0 and LINE.format(loader.__name__) in " ".join(out.split()), err
    large = tmp_path / "large"
    assert manifest.read(large).verification["lossless"]
    assert not POOLER & set(load_file(large / "model.safetensors"))
    before, missing = last_hidden(loader, small, add_pooling_layer=False)
    assert not missing
    for options, absent in (({"add_pooling_layer": False}, set()), ({}, POOLER)):
        after, missing = last_hidden(loader, large, **options)
        assert missing == absent, "as of the source"
        for copy in (after[..., :12], after[..., 12:]):
            assert (copy - before).abs().max() < 1e-5 * before.abs().max()
    code, out, _ = lemon(capsys, "verify", small, large)
    assert code == 0 and LINE.format(loader.__name__) in " ".join(out.split())
    assert lemon(capsys, "inspect", large)[0] == 0 and lemon(capsys, "check", large)[0] == 0


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_native_files_say_it_too(tmp_path, capsys, zero_stage):
    small = bare(tmp_path / "small", "bert")
    native = ["--format", "zero", "--zero-stage", zero_stage, "--world-size", 2]
    code, _, err = lemon(capsys, "reshard", small, "--out", tmp_path / "native", *native)
    assert code == 0, err
    edit(tmp_path / "native", has_pooler=...)
    (tmp_path / "native" / "manifest.json").unlink()
    code, out, err = expanded(capsys, tmp_path / "native", "bert")
    assert code == 0 and LINE.format("BertModel") in " ".join(out.split()), err
    code, _, err = lemon(capsys, "export", tmp_path / "large", "--out", tmp_path / "out")
    assert code == 0, err
    before, _ = last_hidden(transformers.BertModel, small, add_pooling_layer=False)
    after, missing = last_hidden(transformers.BertModel, tmp_path / "out", add_pooling_layer=False)
    assert not missing and (after[..., :12] - before).abs().max() < 1e-5 * before.abs().max()
    assert 'BertModel.from_pretrained("out", add_pooling_layer=False)' in (tmp_path / "out" / "README.md").read_text()


def test_an_image_classifiers_file_is_an_encoder_without_a_pooler(tmp_path, capsys):
    small = edit(saved(tmp_path / "small", "vit"), architectures=["ViTModel"])
    code, out, err = expanded(capsys, small, "vit")
    assert code == 0 and "2 tensors of the source are no part of its model and left behind: classifier.bias" in out, err
    assert set(load_file(tmp_path / "large" / "model.safetensors")) == {
        row.name for row in models.architecture_of(sample("vit encoder without pooler")).rows()
    }


@pytest.mark.parametrize("variant", ["bert", "bert encoder"])
def test_the_files_decide_whatever_the_config_says(tmp_path, variant):
    """A result without a pooler that a user has loaded with a fresh one, trained and saved: it has one now, which is
    said. Of a model with a head the key says nothing."""
    small = edit(saved(tmp_path / "small", variant), has_pooler=False)
    state, config = checkpoints.read(small)
    assert set(state.tensors) == {row.name for row in models.architecture_of(sample(variant)).rows()}
    if variant == "bert":
        assert not state.decided_by_files
    else:
        said = "config.json says has_pooler false, and there is a pooler: it is kept, the result no longer says so"
        assert state.decided_by_files == {"has_pooler": said} and models.has_pooler(config)


def test_both_sides_of_a_verification_are_told_what_their_files_decide(tmp_path, capsys):
    small = edit(bare(tmp_path / "small", "bert"), has_pooler=True)
    code, out, err = expanded(capsys, small, "bert")
    said = f"config.json says has_pooler true, but {LINE.format('BertModel')}"
    assert code == 0 and said in " ".join(out.split()), err
    assert json.loads((tmp_path / "large" / "config.json").read_text())["has_pooler"] is False
    edit(tmp_path / "large", has_pooler=True)
    (tmp_path / "large" / "manifest.json").unlink()
    edit(small, has_pooler=...)
    code, out, _ = lemon(capsys, "verify", small, tmp_path / "large")
    out = " ".join(out.split())
    assert code == 0 and f"source {LINE.format('BertModel')}" in out and f"result {said}" in out


def test_a_pooler_that_the_config_denies_is_told_and_grows(tmp_path, capsys):
    small = edit(saved(tmp_path / "small", "bert encoder"), has_pooler=False)
    code, out, err = expanded(capsys, small, "bert")
    assert code == 0 and "config.json says has_pooler false, and there is a pooler" in " ".join(out.split()), err
    assert set(load_file(tmp_path / "large" / "model.safetensors")) > POOLER
    assert "has_pooler" not in json.loads((tmp_path / "large" / "config.json").read_text())
    code, out, _ = lemon(capsys, "verify", small, tmp_path / "large")
    assert code == 0 and "source config.json says has_pooler false" in " ".join(out.split())


def test_half_a_pooler_is_refused_by_name(tmp_path, capsys):
    small = change(saved(tmp_path / "small", "roberta encoder"), lambda tensors: tensors.pop("pooler.dense.weight"))
    code, _, err = expanded(capsys, small, "roberta")
    assert code == 2 and "1 tensors of the config's model are missing, such as 'pooler.dense.weight'" in err
    assert not (tmp_path / "large").exists()


@pytest.mark.parametrize("stated", [None, True])
def test_a_model_in_memory_grows_without_one(caplog, stated):
    model = transformers.BertModel(sample("bert encoder"), add_pooling_layer=False).eval()
    if stated is not None:
        model.config.has_pooler = stated
    grown = pipeline.grow(model, sample("bert encoder", **times(2)))
    contradicted = "the config says has_pooler true, but " if stated else ""
    assert f"grow: {contradicted}{LINE.format('BertModel')}" in caplog.text
    assert grown.pooler is None and "pooler_output" not in models.architecture_of(grown.config).outputs
    inputs = {"input_ids": torch.arange(12)[None]}
    with torch.no_grad():
        before, after = (each(**inputs).last_hidden_state for each in (model, grown))
    assert (after[..., :12] - before).abs().max() < 1e-5 * before.abs().max()


def test_a_pooler_in_memory_that_the_config_denies_is_told(caplog):
    model = transformers.BertModel(sample("bert encoder without pooler")).eval()
    grown = pipeline.grow(model, sample("bert encoder", **times(2)))
    assert grown.pooler is not None and models.has_pooler(grown.config)
    assert "grow: the config says has_pooler false, and there is a pooler" in caplog.text


@pytest.mark.parametrize("make", [bare, of_a_head], ids=["saved so", "of a head"])
def test_flops_count_none(tmp_path, capsys, make):
    """Of a folder with files; a config.json alone counts one, as its model has it where nobody says otherwise."""
    small = make(tmp_path / "small", "bert")
    architectures = [models.architecture_of(sample(f"bert encoder{end}")) for end in (" without pooler", "")]
    for place, architecture in zip((small, small / "config.json"), architectures, strict=True):
        code, out, err = lemon(capsys, "flops", place, "--sequence-length", 8, "--json")
        assert code == 0 and json.loads(out)["model"]["parameters"] == architecture.parameters, err
        assert (LINE.format("BertModel") in " ".join(err.split())) == (place == small)


def test_flops_of_files_that_are_not_the_configs_model_are_the_configs(tmp_path, capsys):
    small = change(saved(tmp_path / "small", "bert encoder"), lambda tensors: tensors.pop("pooler.dense.weight"))
    code, out, err = lemon(capsys, "flops", small, "--sequence-length", 8, "--json")
    assert code == 0 and "'pooler.dense.weight'" in err and "the model is counted as its config.json says" in err
    assert json.loads(out)["model"]["parameters"] == models.architecture_of(sample("bert encoder")).parameters


def test_the_key_reaches_no_argument_of_transformers(tmp_path):
    """`from_pretrained` takes an argument that a config has as an attribute for the config's, and the class never sees
    it: so the key is another one."""
    folder = edit(saved(tmp_path / "small", "bert encoder without pooler"), has_pooler=False)
    assert "add_pooling_layer" not in json.loads((folder / "config.json").read_text())
    assert transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).pooler is None
    assert transformers.BertModel.from_pretrained(folder).pooler is not None

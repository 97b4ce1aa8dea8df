"""Hugging Face folders in and out: every family, every file layout, names old and new, any dtype."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline import models
from pipeline.checkpoints import manifest
from tests.helpers.checkpoints import change, saved, target_config_file
from tests.helpers.cli import lemon
from tests.helpers.samples import VARIANTS, sample
from tests.helpers.variations import edit

LARGE = {"layers": 3, "hidden": 24, "heads": 6, "mlp": 48}


def expand(capsys, folder: Path, small: Path, variant: str, *more: object, **sizes) -> tuple[int, str, str]:
    target = target_config_file(folder / "target.json", variant, **{**LARGE, **sizes})
    return lemon(capsys, "expand", "--source", small, "--target", target, "--out", folder / "large", *more)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_in_and_out(tmp_path, capsys, variant):
    """The result is a Hugging Face folder by default, and loads with from_pretrained and nothing else."""
    code, _, err = expand(capsys, tmp_path, saved(tmp_path / "small", variant), variant)
    assert code == 0, err
    head = models.of_config(sample(variant)).head(sample(variant))
    loader = getattr(transformers, head.class_name, head.model_class)
    options = head.options(sample(variant))
    model, report = loader.from_pretrained(tmp_path / "large", output_loading_info=True, **options)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert (
        models.architecture_of(model.config).stacks[0].blocks == 3
        and manifest.verify(tmp_path / "large").verification["lossless"]
    )
    assert lemon(capsys, "verify", tmp_path / "small", tmp_path / "large")[0] == 0


@pytest.mark.parametrize("variant", ["bert", "llama"])
@pytest.mark.parametrize("key, value", [("return_dict", False), ("chunk_size_feed_forward", 5)])
def test_keys_that_say_how_to_compute_go_along(tmp_path, capsys, variant, key, value):
    """They change no number: outputs without names, and chunks that do not divide a probe."""
    code, _, err = expand(capsys, tmp_path, edit(saved(tmp_path / "small", variant), **{key: value}), variant)
    assert code == 0, err
    assert json.loads((tmp_path / "large" / "config.json").read_text())[key] == value
    assert lemon(capsys, "verify", tmp_path / "small", tmp_path / "large")[0] == 0


def same(capsys, folder: Path, changed: Path, variant: str) -> None:
    """The changed folder grows into the very same weights as the plain one."""
    plain = saved(folder / "plain", variant)
    for name, source in (("one", plain), ("other", changed)):
        (folder / name).mkdir()
        code, _, err = expand(capsys, folder / name, source, variant)
        assert code == 0, err
    one, other = (load_file(folder / name / "large" / "model.safetensors") for name in ("one", "other"))
    assert all(torch.equal(one[key], other[key]) for key in one) and set(one) == set(other)


def test_sharded_safetensors(tmp_path, capsys):
    model = transformers.BertForMaskedLM.from_pretrained(saved(tmp_path / "small", "bert"))
    model.save_pretrained(tmp_path / "sharded", max_shard_size="8KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    same(capsys, tmp_path, tmp_path / "sharded", "bert")


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "before torch 1.6"])
def test_pickled_weights(tmp_path, capsys, archive):
    small = saved(tmp_path / "small", "bert")
    held = load_file(small / "model.safetensors")
    torch.save(held, small / "pytorch_model.bin", _use_new_zipfile_serialization=archive)
    (small / "model.safetensors").unlink()
    same(capsys, tmp_path, small, "bert")


def test_sharded_pickled_weights(tmp_path, capsys):
    small = saved(tmp_path / "small", "bert")
    held = load_file(small / "model.safetensors")
    parts = {"pytorch_model-00001-of-00002.bin": list(held)[::2], "pytorch_model-00002-of-00002.bin": list(held)[1::2]}
    for file, names in parts.items():
        torch.save({name: held[name] for name in names}, small / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in parts.items() for name in names}}
    (small / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (small / "model.safetensors").unlink()
    same(capsys, tmp_path, small, "bert")


def test_old_names_other_heads_and_buffers(tmp_path, capsys):
    """As bert-base-uncased is published: gamma and beta, the pooler, the next-sentence head, the tied decoder."""

    def age(tensors: dict) -> None:
        for name in [n for n in tensors if "LayerNorm" in n]:
            tensors[name.replace(".weight", ".gamma").replace(".bias", ".beta")] = tensors.pop(name)
        tensors["bert.pooler.dense.weight"] = torch.zeros(12, 12)
        tensors["cls.seq_relationship.bias"] = torch.zeros(2)
        tensors["bert.embeddings.position_ids"] = torch.arange(14)[None]
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()

    same(capsys, tmp_path, change(saved(tmp_path / "small", "bert"), age), "bert")


def test_a_bare_models_names_for_one_with_a_head(tmp_path, capsys):
    """As gpt2 is published: no prefix, and buffers of the causal mask."""

    def strip(tensors: dict) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 14, 14)

    same(capsys, tmp_path, change(saved(tmp_path / "small", "gpt2"), strip), "gpt2")


def test_module_names_of_transformers_5(tmp_path, capsys):
    def rename(tensors: dict) -> None:
        for row in models.architecture_of(sample("vit")).rows():
            tensors[row.module] = tensors.pop(row.name)

    same(capsys, tmp_path, change(saved(tmp_path / "small", "vit"), rename), "vit")


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16])
def test_sources_in_half_precision(tmp_path, capsys, source):
    """Arithmetic in float32, so that the grown model computes what the rounded source does."""
    code, _, err = expand(capsys, tmp_path, saved(tmp_path / "small", "llama", source), "llama", hidden=20, heads=5)
    assert code == 0, err
    assert manifest.read(tmp_path / "large").verification["float64"] < 2e-6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_user_chooses_the_results_dtype(tmp_path, capsys, dtype):
    """Its rounding error is measured and reported; the verdict is that of the float32 weights."""
    code, out, err = expand(capsys, tmp_path, saved(tmp_path / "small", "llama"), "llama", "--dtype", dtype)
    assert code == 0, err
    found = manifest.read(tmp_path / "large").verification
    assert (
        found["lossless"]
        and found["float64"] < 2e-6
        and 1e-5 < found["stored"] < 0.1
        and "rounding to the stored dtype" in out
    )
    with safe_open(tmp_path / "large" / "model.safetensors", "pt") as file:
        stored = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 - no dictionary
    assert stored == {getattr(torch, dtype)}
    assert transformers.LlamaForCausalLM.from_pretrained(tmp_path / "large").dtype == getattr(torch, dtype)


def test_numbers_that_float16_cannot_hold(tmp_path, capsys):
    def swell(tensors: dict) -> None:
        tensors["model.norm.weight"] *= 1e6

    code, _, err = expand(
        capsys, tmp_path, change(saved(tmp_path / "small", "llama"), swell), "llama", "--dtype", "float16"
    )
    assert code == 2 and "'model.norm.weight' does not fit into float16" in err and not (tmp_path / "large").exists()


def test_a_lossy_method_is_published_with_its_measured_difference(tmp_path, capsys):
    code, out, _ = expand(capsys, tmp_path, saved(tmp_path / "small", "gpt2"), "gpt2", "--method", "aki")
    facts = manifest.read(tmp_path / "large")
    assert code == 0 and "lossy, as declared (" in out
    assert facts.lossy and facts.verification["float64"] > 1e-3 and facts.method == "aki"
    code, out, _ = lemon(capsys, "verify", tmp_path / "small", tmp_path / "large")
    assert code == 1 and "verdict      lossy (method 'aki'" in out


def test_a_larger_vocabulary_reports_both_losses(tmp_path, capsys):
    code, _, err = expand(capsys, tmp_path, saved(tmp_path / "small", "roberta"), "roberta", vocab=70, layers=2)
    assert code == 0, err
    code, out, _ = lemon(capsys, "verify", tmp_path / "small", tmp_path / "large", "--json")
    found = json.loads(out)
    assert code == 0 and found["lossless"] and found["loss"][0] != found["loss"][1] and len(found["drift"]) == 2
    assert set(found["symmetry"]) >= {"query", "mlp"} and min(found["symmetry"].values()) > 1e-5


def test_a_config_named_on_the_command_line_goes_along(tmp_path, capsys):
    """Files of a plain script hold none; what is made of them loads with nothing else."""
    config = saved(tmp_path / "small", "gpt2") / "config.json"
    assert (
        lemon(
            capsys,
            "reshard",
            tmp_path / "small",
            "--out",
            tmp_path / "native",
            "--zero-stage",
            "3",
            "--world-size",
            "2",
        )[0]
        == 0
    )
    (tmp_path / "native" / "config.json").unlink()
    (tmp_path / "native" / "manifest.json").unlink()
    code, _, err = lemon(
        capsys,
        "reshard",
        tmp_path / "native",
        "--out",
        tmp_path / "again",
        "--format",
        "huggingface",
        "--source-config",
        config,
    )
    assert code == 0, err
    one, other = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("small", "again")
    )
    assert all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()

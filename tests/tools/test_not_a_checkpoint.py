"""Folders that hold no weights which are read, or weights in wrappers: what was found is said, with the way out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout
from tests.helpers.checkpoints import change, saved, source
from tests.helpers.cli import lemon

WEIGHTS = "model.safetensors"


def without_weights(folder: Path, *names: str) -> None:
    (folder / WEIGHTS).unlink()
    for name in names:
        (folder / name).write_text("x")


def adapter(folder: Path) -> None:
    without_weights(folder, "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "a/b"}))


def trainer(folder: Path) -> None:
    without_weights(folder)
    for step in (500, 1000):
        (folder / f"checkpoint-{step}").mkdir()


def dead_link(folder: Path) -> None:
    without_weights(folder)
    (folder / WEIGHTS).symlink_to("../blobs/gone")


FOREIGN = {
    "adapter": (adapter, "PEFT adapter (adapter_config.json) and not its base model (a/b); merge the two first"),
    "trainer": (trainer, "holds checkpoints of a Trainer (checkpoint-500, checkpoint-1000); name one of them"),
    "gguf": (lambda folder: without_weights(folder, "model-Q4.gguf"), "holds 'model-Q4.gguf' and none of"),
    "tensorflow": (lambda folder: without_weights(folder, "tf_model.h5"), "TensorFlow weights are not read"),
    "flax": (lambda folder: without_weights(folder, "flax_model.msgpack"), "Flax weights are not read"),
    "consolidated": (lambda folder: without_weights(folder, "consolidated.00.pth"), "publisher's own layout"),
    "shards": (
        lambda folder: without_weights(folder, "model-00001-of-00002.safetensors"),
        "no model.safetensors.index.json, which lists the tensors; copy that file too",
    ),
    "variant": (lambda folder: without_weights(folder, "model.fp16.safetensors"), "name the file model.safetensors"),
    "dead link": (dead_link, "its 'model.safetensors' is a link to ../blobs/gone, which is not there; copy it"),
    "config only": (without_weights, "sought were model.safetensors"),
}


@pytest.mark.parametrize("make, complaint", FOREIGN.values(), ids=FOREIGN)
def test_what_was_found_is_said(tmp_path, capsys, make, complaint):
    small = saved(tmp_path / "small", "gpt2")
    make(small)
    for command in (["inspect", small], ["export", small, "--out", tmp_path / "out"]):
        code, _, err = lemon(capsys, *command)
        assert code == 2 and complaint in err and err.count("\n") == 1, err


def test_a_file_is_no_folder(tmp_path, capsys):
    code, _, err = lemon(capsys, "inspect", saved(tmp_path / "small", "gpt2") / WEIGHTS)
    assert code == 2 and "is a file; name the folder in which it lies" in err


@pytest.mark.parametrize(
    "name, way_out",
    [
        ("meta-llama/Llama-3.2-1B", "hf download meta-llama/Llama-3.2-1B --local-dir DIR"),
        ("~/model", "'~' is not replaced inside a word, write the path out"),
        ("nothing", "name a run's stage, a checkpoint folder, or one tag in it"),
    ],
)
def test_a_folder_that_is_not_there(tmp_path, monkeypatch, capsys, name, way_out):
    monkeypatch.chdir(tmp_path)
    code, _, err = lemon(capsys, "inspect", name)
    assert code == 2 and f"{name}: no such folder; " in err and way_out in err, err


def test_a_config_that_is_a_pointer(tmp_path, capsys):
    small = saved(tmp_path / "small", "gpt2")
    (small / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 665\n")
    said = f"{small / 'config.json'}: is a pointer of Git LFS, the file itself was not fetched; run 'git lfs pull'"
    code, _, err = lemon(capsys, "export", small, "--out", tmp_path / "out")
    assert code == 2 and said in err and err.count("\n") == 1, err
    code, out, err = lemon(capsys, "inspect", small)
    assert said in out + err, out


@pytest.mark.parametrize(
    "content, complaint",
    [
        ({}, "config.json: it names no model_type: add it; known: bert,"),
        (
            {"architecture": "vit_tiny", "num_classes": 10},
            "config.json: a config of timm ('vit_tiny'), which is not read",
        ),
    ],
    ids=["empty", "timm"],
)
def test_a_config_without_a_model_type(tmp_path, capsys, content, complaint):
    small = saved(tmp_path / "small", "gpt2")
    (small / "config.json").write_text(json.dumps(content))
    code, _, err = lemon(capsys, "export", small, "--out", tmp_path / "out")
    assert code == 2 and complaint in err and err.count("\n") == 1, err


def test_a_head_that_is_not_known(tmp_path, capsys):
    small = saved(tmp_path / "small", "bert")
    content = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**content, "architectures": ["BertLMHeadModel"]}))
    code, _, err = lemon(capsys, "export", small, "--out", tmp_path / "out")
    assert code == 2 and "known are BertForMaskedLM, " in err, err
    assert "BertModel: load the model as one of them (say BertForMaskedLM.from_pretrained) and save that" in err


def test_missing_tensors_and_what_is_there_instead(tmp_path, capsys):
    def prefix(tensors: dict) -> None:
        for name in list(tensors):
            tensors[f"net.{name}"] = tensors.pop(name)

    small = change(saved(tmp_path / "small", "vit encoder"), prefix)
    code, _, err = lemon(capsys, "export", small, "--out", tmp_path / "out")
    assert (
        code == 2 and "such as 'embeddings.cls_token', and its files hold 'net.embeddings.cls_token' instead" in err
    ), err
    small = change(saved(tmp_path / "bare", "vit encoder"), lambda tensors: tensors.pop("pooler.dense.bias"))
    code, _, err = lemon(capsys, "export", small, "--out", tmp_path / "out")
    assert (
        code == 2 and "'pooler.dense.bias'; is it the right config? If fresh ones will do, load the folder with" in err
    )


def test_adapters_that_are_not_merged(tmp_path, capsys):
    def adapt(tensors: dict) -> None:
        name = "transformer.h.0.attn.c_attn"
        tensors[f"{name}.base_layer.weight"] = tensors.pop(f"{name}.weight")
        tensors[f"{name}.lora_A.default.weight"] = torch.zeros(4, 12)

    code, _, err = lemon(capsys, "export", change(saved(tmp_path / "small", "gpt2"), adapt), "--out", tmp_path / "out")
    assert code == 2 and "holds PEFT adapters ('transformer.h.0.attn.c_attn.lora_A.default.weight') that are not" in err


def test_a_tag_below_an_adapter(tmp_path, capsys):
    """As a Trainer saves it: no config lies there."""
    tag = source(tmp_path, CheckpointLayout("zero", 2, 2), "gpt2")
    (tag / "config.json").unlink(), (tag / "manifest.json").unlink()
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "a/b"}))
    code, _, err = lemon(capsys, "export", tag, "--out", tmp_path / "out")
    assert code == 2 and "PEFT adapter (adapter_config.json) and not its base model (a/b); merge the two first" in err


@pytest.mark.parametrize("variant", ["bert", "bert encoder", "roberta"])
def test_buffers_of_older_versions_are_left_behind(tmp_path, capsys, variant):
    """Files that transformers 4.0 to 4.30 saved hold numbers of positions and of token types."""
    prefix = "" if variant.endswith("encoder") else f"{variant}."
    names = [f"{prefix}embeddings.{name}" for name in ("position_ids", "token_type_ids")]
    small = change(
        saved(tmp_path / "small", variant),
        lambda tensors: tensors.update({name: torch.arange(3)[None] for name in names}),
    )
    code, out, err = lemon(capsys, "export", small, "--out", tmp_path / "out")
    assert (
        code == 0 and f"2 tensors of the source are no part of its model and left behind: {', '.join(names)}" in out
    ), err


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: name.replace("transformer.h.0.", "transformer.h.0._orig_mod."),
    ],
    ids=["data parallel", "compiled", "both", "adapter", "a compiled layer"],
)
def test_wrappers_are_taken_off_and_said(tmp_path, capsys, wrap):
    small = saved(tmp_path / "small", "gpt2")
    before = load_file(small / WEIGHTS)
    save_file({wrap(name): tensor for name, tensor in before.items()}, small / WEIGHTS, metadata={"format": "pt"})
    code, out, err = lemon(capsys, "export", small, "--out", tmp_path / "out")
    assert code == 0 and "the names of its tensors are read without '" in out, err
    after = load_file(tmp_path / "out" / WEIGHTS)
    assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_weights_that_a_script_saved_under_a_key(tmp_path, capsys):
    small = saved(tmp_path / "small", "gpt2")
    before = load_file(small / WEIGHTS)
    torch.save({"state_dict": before, "epoch": 3, "optimizer": {}}, small / "pytorch_model.bin")
    (small / WEIGHTS).unlink()
    code, out, err = lemon(capsys, "export", small, "--out", tmp_path / "out")
    left = "what pytorch_model.bin holds beside 'state_dict' is left behind: 'epoch', 'optimizer'"
    assert code == 0 and "read is what it holds as 'state_dict'" in out and f"export: {left}" in out, err
    assert left in json.loads((tmp_path / "out" / "manifest.json").read_text())["left_behind"]
    after = load_file(tmp_path / "out" / WEIGHTS)
    assert all(torch.equal(after[name], before[name]) for name in before)


def quantise(folder: Path, **stated: object) -> Path:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "quantization_config": stated}))
    return folder


def test_codes_are_refused_by_the_quantisations_name(tmp_path, capsys):
    def code(tensors: dict) -> None:
        name = "transformer.h.0.attn.c_attn.weight"
        tensors[name] = tensors[name].to(torch.int8)

    small = quantise(change(saved(tmp_path / "small", "gpt2"), code), quant_method="bitsandbytes")
    exit_code, _, err = lemon(capsys, "export", small, "--out", tmp_path / "out")
    assert exit_code == 2 and "quantised by bitsandbytes" in err and "holds int8 codes and no weights" in err, err
    content = json.loads((small / "config.json").read_text())
    del content["quantization_config"]
    (small / "config.json").write_text(json.dumps(content))
    exit_code, _, err = lemon(capsys, "export", small, "--out", tmp_path / "out")
    assert exit_code == 2 and "holds int8 codes and no weights" in err, err


def test_what_is_left_of_a_quantisation_is_dropped_and_said(tmp_path, capsys):
    small = quantise(saved(tmp_path / "small", "gpt2"), quant_method="fp8")
    code, out, err = lemon(capsys, "export", small, "--out", tmp_path / "out")
    assert code == 0 and "quantization_config of its config.json (fp8) is dropped" in out, err
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    code, _, err = lemon(capsys, "expand", "--source", small, "--target", small, "--out", tmp_path / "same")
    assert code == 0, err


def trainers_checkpoint(folder: Path) -> Path:
    """The tag folder of one: DeepSpeed's files below Hugging Face's, with the config and the tokenizer above them."""
    tag, above = source(folder, CheckpointLayout("zero", 2, 2), "gpt2"), saved(folder / "checkpoint-7", "gpt2")
    tag = tag.rename(above / "global_step7")
    (tag / "manifest.json").unlink(), (tag / "config.json").unlink()
    (above / "latest").write_text("global_step7")
    (above / "tokenizer.json").write_text("{}")
    return tag


def test_a_trainers_checkpoint(tmp_path, capsys):
    """Whoever names the folder above is told what is not read."""
    tag = trainers_checkpoint(tmp_path)
    folder, out = tag.parent, tmp_path / "out"
    said = f"optimizer state, step and weights in fp32 lie in global_step7, name {tag} to take those"
    native = ["--format", "zero", "--zero-stage", 1, "--world-size", 1]
    for command in (
        ["inspect", folder],
        ["check", folder],
        ["export", folder, "--out", tmp_path / "exported"],
        ["reshard", folder, *native, "--out", tmp_path / "native"],
        ["expand", "--source", folder, "--target", folder, "--out", out],
        ["verify", folder, out],
    ):
        code, printed, err = lemon(capsys, *command)
        assert code == 0 and said in " ".join(printed.split()), printed + err


def test_a_trainers_tag(tmp_path, capsys):
    """Its config is found above it, and what lies beside that goes along."""
    tag = trainers_checkpoint(tmp_path)
    folder, config = tag.parent, tag.parent / "config.json"
    code, out, err = lemon(capsys, "inspect", tag)
    assert code == 0 and "gpt2 (GPT2LMHeadModel)" in out, err
    code, out, err = lemon(capsys, "reshard", tag, "--format", "huggingface", "--out", tmp_path / "of the shards")
    assert code == 0 and f"read is the one of the folder above it, {config}" in out, err
    code, _, err = lemon(capsys, "export", tag, "--out", tmp_path / "exported")
    assert code == 0, err
    for place in ("of the shards", "exported"):
        assert (tmp_path / place / "tokenizer.json").exists() and not (tmp_path / place / "global_step7").exists()
        assert not (tmp_path / place / "latest").exists()
    code, _, err = lemon(capsys, "reshard", tag, "--world-size", 1, "--out", tmp_path / "native")
    assert code == 0 and not (tmp_path / "native" / "tokenizer.json").exists(), err
    code, _, err = lemon(capsys, "verify", tag, tmp_path / "of the shards")
    assert code == 0, err
    (folder / "latest").unlink()
    code, _, err = lemon(capsys, "verify", tag, tmp_path / "of the shards")
    assert code == 2 and "--source-config" in err
    code, _, err = lemon(capsys, "verify", tag, tmp_path / "of the shards", "--source-config", config)
    assert code == 0, err
    assert checkpoints.raw(tag).step == 7


def test_shards_of_an_earlier_save_are_named(tmp_path, capsys):
    small = saved(tmp_path / "small", "gpt2")
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (small / name).write_bytes((small / WEIGHTS).read_bytes())
    said = (
        "left behind beside the weights that were read: model-00001-of-00002.safetensors, model.safetensors.index.json"
    )
    for command in ("inspect", "check"):
        code, out, err = lemon(capsys, command, small)
        assert code == 0 and said in " ".join(out.split()), out + err

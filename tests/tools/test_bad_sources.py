"""Sources and targets that do not hold together: one line that names the tensor, exit code 2, nothing written."""

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.checkpoints import change, saved, target_config_file
from tests.helpers.cli import lemon

LARGE = {"hidden": 24, "heads": 6, "mlp": 48}


def refused(capsys, folder: Path, variant: str, *complaints: str, target: Path | None = None) -> None:
    """The expansion of `folder`/small ends with one line, and leaves nothing."""
    before = sorted(path.name for path in folder.iterdir()) + ["target.json"] * (target is None)
    target = target or target_config_file(folder / "target.json", variant, **LARGE)
    code, _, err = lemon(capsys, "expand", "--source", folder / "small", "--target", target, "--out", folder / "large")
    assert code == 2 and err.count("\n") == 1, err
    for complaint in complaints:
        assert complaint in err, err
    assert sorted(path.name for path in folder.iterdir()) == sorted(before)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def scramble(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


@pytest.mark.parametrize(
    "damage", [cut, scramble, lambda path: path.write_bytes(b"")], ids=["truncated", "corrupt header", "empty"]
)
def test_damaged_safetensors(tmp_path, capsys, damage):
    damage(saved(tmp_path / "small", "vit") / "model.safetensors")
    refused(capsys, tmp_path, "vit", "model.safetensors: not a whole safetensors file", "copy it again")


def test_a_missing_shard(tmp_path, capsys):
    small = saved(tmp_path / "small", "vit")
    (small / "model.safetensors").unlink()
    (small / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}})
    )
    refused(capsys, tmp_path, "vit", "model-00001-of-00001.safetensors: not a whole safetensors file")


@pytest.mark.parametrize(
    "content, complaint",
    [
        ({}, "names no files in 'weight_map'"),
        ({"weight_map": {"a": "../x.safetensors"}}, "is not a file of this folder"),
        ([1], "holds a JSON list, not an object of keys"),
    ],
)
def test_an_index_that_is_none(tmp_path, capsys, content, complaint):
    small = saved(tmp_path / "small", "vit")
    (small / "model.safetensors").unlink()
    (small / "model.safetensors.index.json").write_text(json.dumps(content))
    refused(capsys, tmp_path, "vit", complaint)


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b'{"model_type": "\xe9"}', "not valid JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not valid JSON"),
        (b'{"model_type": "gpt2", "n_layer": 10000000}', "10000000 layers are more than any model has"),
        (b'{"model_type": "gpt2", "n_embd": 1200000000}', "a size of 4800000000 is more than any model has"),
    ],
    ids=["latin-1", "deep", "endless", "wide"],
)
def test_a_config_that_is_none(tmp_path, capsys, content, complaint):
    (saved(tmp_path / "small", "gpt2") / "config.json").write_bytes(content)
    refused(capsys, tmp_path, "gpt2", complaint)


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "before torch 1.6"])
def test_pickled_code_is_not_run(tmp_path, capsys, archive):
    small = saved(tmp_path / "small", "vit")
    (small / "model.safetensors").unlink()
    torch.save({"a": Malicious()}, small / "pytorch_model.bin", _use_new_zipfile_serialization=archive)
    refused(
        capsys,
        tmp_path,
        "vit",
        "pytorch_model.bin: cannot be loaded safely (damaged, or it holds code): "
        "it holds exec, which no checkpoint needs",
    )


def test_a_pickle_of_something_else(tmp_path, capsys):
    small = saved(tmp_path / "small", "vit")
    (small / "model.safetensors").unlink()
    torch.save({"rows": {"weight": torch.zeros(2)}}, small / "pytorch_model.bin")
    refused(capsys, tmp_path, "vit", "holds something else than named tensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(tmp_path, capsys, value):
    def spoil(tensors: dict) -> None:
        tensors["vit.encoder.layer.1.output.dense.weight"][3, 4] = value

    change(saved(tmp_path / "small", "vit"), spoil)
    refused(
        capsys,
        tmp_path,
        "vit",
        "'vit.encoder.layer.1.output.dense.weight' holds NaN or infinite values",
        "use an older checkpoint",
    )


def test_a_missing_tensor(tmp_path, capsys):
    change(saved(tmp_path / "small", "qwen3"), lambda tensors: tensors.pop("model.layers.1.self_attn.q_norm.weight"))
    refused(
        capsys,
        tmp_path,
        "qwen3",
        "1 tensors of the config's model are missing, such as 'model.layers.1.self_attn.q_norm.weight'",
    )


def test_an_extra_tensor(tmp_path, capsys):
    change(
        saved(tmp_path / "small", "qwen3"), lambda tensors: tensors.update({"model.layers.7.mystery": torch.zeros(3)})
    )
    refused(capsys, tmp_path, "qwen3", "belong to no part of the config's model, such as 'model.layers.7.mystery'")


def test_a_config_that_contradicts_the_weights(tmp_path, capsys):
    small = saved(tmp_path / "small", "gpt2")
    content = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**content, "n_inner": 24}))
    refused(capsys, tmp_path, "gpt2", "'transformer.h.0.mlp.c_fc.weight' has shape (12, 20), the config says (12, 24)")


def test_a_target_of_another_family(tmp_path, capsys):
    saved(tmp_path / "small", "gpt2")
    refused(
        capsys,
        tmp_path,
        "gpt2",
        "the source is a 'gpt2', the target a 'llama'",
        target=target_config_file(tmp_path / "other.json", "llama", **LARGE),
    )


def test_an_unknown_family(tmp_path, capsys):
    saved(tmp_path / "small", "gpt2")
    (tmp_path / "other.json").write_text(json.dumps({"model_type": "mamba"}))
    refused(
        capsys,
        tmp_path,
        "gpt2",
        "model_type 'mamba' (architectures: none) is not supported",
        target=tmp_path / "other.json",
    )


@pytest.mark.parametrize(
    "name, content, complaint",
    [
        ("model.safetensors", b"\x90\x01\x00\xff", "model.safetensors: not valid JSON"),
        ("config.json", b"[]", "config.json: holds a JSON list, not an object of keys"),
        ("config.json", b"{}", "config.json: it names no model_type: add it; known: bert"),
        ("config.json", b'{"model_type": "gpt2", "n_layer": 0}', "config.json: n_layer 0 is impossible"),
        ("config.json", b'{"model_type": "vit", "patch_size": [4, 4]}', "config.json: patch_size [4, 4] is impossible"),
        (
            "config.json",
            b'{"model_type": "vit", "architectures": "x"}',
            "config.json: architectures is 'x' and no list",
        ),
        ("config.json", b'{"model_type": "vit", "dtype": [1]}', "config.json: not a config of 'vit'"),
    ],
)
def test_a_target_that_is_none(tmp_path, capsys, name, content, complaint):
    saved(tmp_path / "small", "gpt2")
    (tmp_path / name).write_bytes(content)
    refused(capsys, tmp_path, "gpt2", complaint, target=tmp_path / name)


def test_a_target_that_computes_something_else(tmp_path, capsys):
    saved(tmp_path / "small", "gpt2")
    target = target_config_file(tmp_path / "other.json", "gpt2", **LARGE)
    target.write_text(json.dumps({**json.loads(target.read_text()), "activation_function": "relu"}))
    refused(capsys, tmp_path, "gpt2", "has activation_function 'relu' where the source's has 'gelu_new'", target=target)


@pytest.mark.parametrize(
    "more, complaint",
    [
        (["--method", "lemn"], "unknown method 'lemn'; did you mean 'lemon'?"),
        (["--dtype", "float16", "--zero-stage", "2"], "--dtype float16 belongs to --format huggingface"),
        (["--format", "universal", "--world-size", "2"], "--world-size 2 belongs to --format zero"),
        (["--optimizer-state", "grow"], "the source holds no exp_avg and no exp_avg_sq; use --optimizer-state reset"),
    ],
)
def test_options_that_contradict(tmp_path, capsys, more, complaint):
    saved(tmp_path / "small", "vit")
    target = target_config_file(tmp_path / "target.json", "vit", **LARGE)
    for command in (["expand", "--out", tmp_path / "large"], ["plan", "--out", tmp_path / "plan.json"]):
        code, _, err = lemon(capsys, *command, "--source", tmp_path / "small", "--target", target, *more)
        assert code == 2 and complaint in err and err.count("\n") == 1, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "target.json"]

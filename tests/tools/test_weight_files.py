"""Which files of a Hugging Face folder count: those that `from_pretrained` of transformers 5 reads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import checkpoints
from tests.helpers.checkpoints import saved
from tests.helpers.cli import lemon
from tests.helpers.pretrained import given_out, tokens
from tests.helpers.samples import POSITIONS

NORM = "transformer.ln_f.weight"
HALVES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def sharded(folder: Path) -> Path:
    """A model whose tensors lie in two shards."""
    held = load_file(saved(folder, "gpt2") / "model.safetensors")
    listed = {}
    for number, shard in enumerate(HALVES):
        part = {name: held[name] for name in sorted(held)[number::2]}
        save_file(part, folder / shard, metadata={"format": "pt"})
        listed |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": listed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return folder


def doubled(folder: Path, file: str) -> None:
    """Beside other weights of a folder the same model with a doubled final norm, as `file`."""
    held = {name: read.tensor().clone() for name, read in checkpoints.raw(folder).tensors.items()}
    held[NORM] *= 2
    save = torch.save if file.endswith(".bin") else save_file
    save(held, folder / file, **({} if file.endswith(".bin") else {"metadata": {"format": "pt"}}))


def read_as_transformers_does(capsys, folder: Path, tmp_path: Path, *allowed: str) -> None:
    inputs = tokens(folder, POSITIONS)
    code, _, err = lemon(capsys, "export", folder, "--out", tmp_path / "exported")
    assert code == 0, err
    assert torch.equal(given_out(folder, inputs, *allowed), given_out(tmp_path / "exported", inputs))


def test_a_new_file_beside_old_shards(tmp_path, capsys):
    small = sharded(tmp_path / "small")
    before = checkpoints.raw(small).tensors[NORM].tensor().clone()
    doubled(small, "model.safetensors")
    assert torch.equal(checkpoints.raw(small).tensors[NORM].tensor(), 2 * before)
    read_as_transformers_does(capsys, small, tmp_path)
    assert lemon(capsys, "check", small)[0] == 0


@pytest.mark.parametrize("make", [sharded, lambda folder: saved(folder, "gpt2")], ids=["shards", "one file"])
def test_safetensors_before_pickles(tmp_path, capsys, make):
    small = make(tmp_path / "small")
    doubled(small, "pytorch_model.bin")
    read_as_transformers_does(capsys, small, tmp_path)


def test_a_file_that_the_config_names(tmp_path, capsys):
    small = saved(tmp_path / "small", "gpt2")
    doubled(small, "other.safetensors")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    read_as_transformers_does(capsys, small, tmp_path)
    assert "transformers_weights" not in json.loads((tmp_path / "exported" / "config.json").read_text())


@pytest.mark.parametrize("name", ["../small/model.safetensors", "/model.safetensors", ["model.safetensors"]], ids=str)
def test_a_config_that_names_no_file_of_the_folder(tmp_path, capsys, name):
    """transformers refuses it; another file of the folder would be other weights."""
    small = saved(tmp_path / "small", "gpt2")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))
    code, _, err = lemon(capsys, "inspect", small)
    assert code == 2 and f"transformers_weights {name!r} is no file of this folder" in err and err.count("\n") == 1


def test_a_tensor_that_is_in_a_shard_and_not_in_the_index(tmp_path, capsys):
    small = sharded(tmp_path / "small")
    place = small / "model.safetensors.index.json"
    index = json.loads(place.read_text())
    index["weight_map"].pop(NORM)
    place.write_text(json.dumps(index))
    read_as_transformers_does(capsys, small, tmp_path)
    code, _, err = lemon(capsys, "check", small)
    assert code == 2 and f"'{NORM}' is in a file and not in the index" in err


def test_a_tensor_that_two_shards_hold(tmp_path, capsys):
    small = sharded(tmp_path / "small")
    first, second = (load_file(small / shard) for shard in HALVES)
    name = next(iter(first))
    save_file({**second, name: first[name] + 1}, small / HALVES[1], metadata={"format": "pt"})
    code, _, err = lemon(capsys, "export", small, "--out", tmp_path / "out")
    assert code == 2 and f"'{name}' is in another file of model.safetensors.index.json too" in err, err


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs(tmp_path, capsys, file):
    small = saved(tmp_path / "small", "gpt2")
    (small / "model.safetensors").unlink()
    (small / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n")
    for command in (["inspect", small], ["export", small, "--out", tmp_path / "out"]):
        code, _, err = lemon(capsys, *command)
        assert code == 2 and f"{file}: is a pointer of Git LFS" in err and "git lfs pull" in err, err

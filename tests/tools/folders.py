"""Hugging Face folders of any variant with random weights, as users have them, and the command line run on them."""

from pathlib import Path

import torch
from growing import randomised
from safetensors.torch import load_file, save_file
from samples import sample

from pipeline import models
from pipeline.__main__ import main


def saved(folder: Path, variant: str, dtype: torch.dtype = torch.float32, **sizes) -> Path:
    """A model saved by `transformers` itself, gains and biases random too."""
    config = sample(variant, **{"eps": 1e-6, **sizes})
    weights = {name: tensor.float() for name, tensor in randomised(config).items()}
    models.fill(models.build(config), weights.__getitem__).to(dtype).save_pretrained(folder)
    return folder


def wanted(path: Path, variant: str, **sizes) -> Path:
    """A config.json of the target."""
    path.write_text(sample(variant, **{"eps": 1e-6, **sizes}).to_json_string(use_diff=False))
    return path


def change(folder: Path, edit) -> Path:
    """Rewrite the weights of a folder by `edit(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def lemon(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    capsys.readouterr()  # what made the folders has its own things to say
    code = main(list(map(str, arguments)))
    said = capsys.readouterr()
    return code, said.out, said.err

"""The forms in which people keep a model of transformers: what `save_pretrained` writes, and what scripts do."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

BESIDE = {"optimizer": {"state": {}}, "epoch": 3}
"""What a training script saves with a model."""
FORMS = ("safetensors", "bfloat16", "shards", "pickled", "state_dict", "module.", "trainer")


def saved_as(form: str, net: PreTrainedModel, folder: Path) -> Path:
    """The folder, with the model in one of the forms."""
    net.config.save_pretrained(folder)
    tensors, beside = {name: value.clone() for name, value in net.state_dict().items()}, {}
    if form in ("safetensors", "bfloat16", "shards"):
        size = "2KB" if form == "shards" else "5GB"
        (net.to(torch.bfloat16) if form == "bfloat16" else net).save_pretrained(folder, max_shard_size=size)
        return folder
    if form == "module.":
        tensors = {f"module.{name}": value for name, value in tensors.items()}
    if form in ("state_dict", "trainer"):
        tensors, beside = {"state_dict" if form == "state_dict" else "model": tensors}, BESIDE
    torch.save({**tensors, **beside}, folder / "pytorch_model.bin")
    return folder

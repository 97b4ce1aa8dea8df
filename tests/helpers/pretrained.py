"""What a Hugging Face folder computes: what `from_pretrained` makes of it."""

from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from pipeline import models

COMPLAINTS = ("missing_keys", "unexpected_keys", "mismatched_keys")
"""What `from_pretrained` says of a folder that is not just its model."""


def loaded(folder: Path, *allowed: str) -> PreTrainedModel:
    """The model of a folder, evaluating in float64. allowed: the complaints that its files give rise to; a folder of
    ours gives rise to none."""
    config = models.read_config(folder / "config.json")[1]
    head = models.of_config(config).head(config)
    loader = getattr(transformers, head.class_name, head.model_class)
    model, report = loader.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **head.options(config)
    )
    assert not {kind: report[kind] for kind in COMPLAINTS if report[kind] and kind not in allowed}
    return model.double().eval()


def tokens(folder: Path, length: int) -> dict[str, Tensor]:
    """Two random sequences for the model of a folder."""
    vocabulary = models.read_config(folder / "config.json")[1].vocab_size
    return {"input_ids": torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(9))}


def given_out(folder: Path, inputs: dict[str, Tensor], *allowed: str) -> Tensor:
    """The first output of the model of a folder."""
    with torch.no_grad():
        output: Tensor = loaded(folder, *allowed)(**inputs)[0]
    return output


def apart(small: Path, large: Path, inputs: dict[str, Tensor], *allowed: str) -> float:
    """The largest difference of what both give out, over the largest number of the small one's, which may be loaded
    with complaints."""
    before, after = given_out(small, inputs, *allowed), given_out(large, inputs)
    return ((before - after).abs().max() / before.abs().max()).item()

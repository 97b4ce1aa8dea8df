"""Checkpoints of real sizes with invented numbers, for the benchmarks: weights and both moments, drawn by name."""

import zlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2Config, PretrainedConfig

from pipeline import checkpoints, models
from pipeline.checkpoints import CheckpointLayout, publish
from pipeline.checkpoints.state import State
from pipeline.checkpoints.tensors import LazyTensor, WholeTensor
from pipeline.config.model_sizes import ModelSizes
from pipeline.optim.optimizers import AdamW

FACTS = {"kind": "text", "vocab_size": 30522, "block": 512, "scored": 76}


def bert(layers: int, hidden: int, heads: int) -> PretrainedConfig:
    return models.trained(ModelSizes(family="bert-pre-ln", layers=layers, hidden=hidden, heads=heads), FACTS)


def gpt2(layers: int, hidden: int, heads: int) -> PretrainedConfig:
    return GPT2Config(n_layer=layers, n_embd=hidden, n_head=heads, n_positions=1024, architectures=["GPT2LMHeadModel"])


SIZES = {
    "tiny": gpt2(2, 64, 4),
    "bert-base": bert(12, 768, 12),
    "bert-large": bert(24, 1024, 16),
    "1.3b": gpt2(24, 2048, 16),
    "2.1b": gpt2(25, 2560, 20),
    "tiny-grown": gpt2(3, 80, 5),
}
"""gpt2 1.3b: 1,315 million parameters; 2.1b: 2,102 million."""


class DrawnTensor(WholeTensor):
    """Numbers drawn by the tensor's name, around `mean`, each time they are read. squared: none is negative."""

    def __init__(self, name: str, shape: tuple[int, ...], scale: float, mean: float = 0.0, squared: bool = False):
        super().__init__(shape)
        self.name, self.scale, self.mean, self.squared = name, scale, mean, squared

    def load(self) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))
        tensor = torch.empty(self.shape).normal_(self.mean, self.scale, generator=generator)
        return tensor.square_() if self.squared else tensor


def state(config: PretrainedConfig) -> State:
    """A state after 1,000 steps: weights around 0, gains of norms around 1, squares as second moments."""
    architecture = models.architecture_of(config)
    weights: dict[str, LazyTensor] = {}
    first: dict[str, LazyTensor] = {}
    second: dict[str, LazyTensor] = {}
    for param in architecture.rows():
        name, shape = param.name, architecture.shape(param)
        weights[name] = DrawnTensor(name, shape, 0.02, 1.0 if param.axes[0].role == "gain" else 0.0)
        first[name] = DrawnTensor(f"exp_avg{name}", shape, 1e-4)
        second[name] = DrawnTensor(f"exp_avg_sq{name}", shape, 1e-3, squared=True)
    slots, steps = {"exp_avg": first, "exp_avg_sq": second}, dict.fromkeys(weights, 1000.0)
    bare = State(weights, slots=slots, step=1000, steps=steps, aliases=architecture.aliases)
    return replace(bare, groups=checkpoints.fresh_groups(config, AdamW()))


def written(folder: Path, config: PretrainedConfig, layout: CheckpointLayout, workers: int = 2) -> Path:
    """Publish such a state as a checkpoint; returns its folder."""
    with publish.writing(folder) as staged:
        files, _ = checkpoints.write(state(config), config, staged, layout, workers=workers)
        publish.publish(staged, folder, {**layout.as_json(), "step": 1000, "provenance": {"flops": "unknown"}}, files)
    return folder

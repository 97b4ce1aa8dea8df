"""Checkpoints of real sizes with invented numbers, for the benchmarks: weights and both moments, drawn by name."""

import zlib
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2Config, PretrainedConfig

from pipeline import checkpoints, models
from pipeline.checkpoints import CheckpointLayout, publish
from pipeline.checkpoints.state import State
from pipeline.checkpoints.tensors import LazyTensor, WholeTensor
from pipeline.config.schema import ModelSizes

FACTS = {"kind": "text", "vocab_size": 30522, "block": 512, "scored": 76}


def bert(layers: int, hidden: int, heads: int) -> PretrainedConfig:
    return models.trained(ModelSizes(family="bert-pre-ln", layers=layers, hidden=hidden, heads=heads), FACTS)


def gpt2(layers: int, hidden: int, heads: int) -> PretrainedConfig:
    return GPT2Config(n_layer=layers, n_embd=hidden, n_head=heads, n_positions=1024, architectures=["GPT2LMHeadModel"])


SIZES = {
    "tiny": gpt2(2, 64, 4),
    "bert-large": bert(24, 1024, 16),
    "1.3b": gpt2(24, 2048, 16),
    "2.1b": gpt2(25, 2560, 20),
    "tiny-grown": gpt2(3, 80, 5),
}
"""gpt2 1.3b: 1,315 million parameters; 2.1b: 2,102 million."""


class DrawnTensor(WholeTensor):
    """Numbers drawn by the tensor's name, around `offset`, each time they are asked for. squared: none is negative."""

    def __init__(self, name: str, shape: tuple[int, ...], scale: float, squared: bool, offset: float):
        super().__init__(shape)
        self.name, self.scale, self.squared, self.offset = name, scale, squared, offset

    def load(self) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))
        tensor = torch.empty(self.shape).normal_(self.offset, self.scale, generator=generator)
        return tensor.square_() if self.squared else tensor


def state(config: PretrainedConfig) -> State:
    """A state in mid-training: 1,000 steps."""
    architecture = models.architecture_of(config)

    def drawn(slot: str, scale: float, positive: bool = False) -> dict[str, LazyTensor]:
        return {
            param.name: DrawnTensor(
                slot + param.name,
                architecture.shape(param),
                scale,
                positive,
                float(slot == "" and param.axes[0].role == "gain"),
            )
            for param in architecture.rows()
        }

    slots = {"exp_avg": drawn("exp_avg", 1e-4), "exp_avg_sq": drawn("exp_avg_sq", 1e-3, positive=True)}
    bare = State(
        drawn("", 0.02),
        slots=slots,
        steps={row.name: 1000.0 for row in architecture.rows()},
        aliases=architecture.aliases,
    )
    return State(
        bare.tensors,
        slots=slots,
        step=1000,
        steps=bare.steps,
        aliases=architecture.aliases,
        groups=checkpoints.fresh_groups(config, bare),
    )


def written(folder: Path, config: PretrainedConfig, layout: CheckpointLayout, workers: int = 2) -> Path:
    """Publish such a state as a checkpoint."""
    with publish.writing(folder) as staged:
        files, _ = checkpoints.write(state(config), config, staged, layout, workers=workers)
        publish.publish(staged, folder, {**layout.as_json(), "step": 1000, "provenance": {"flops": "unknown"}}, files)
    return folder

"""What a model or a run costs, from its config alone: the content of `lemon flops`.

Model FLOPs are those of forward and backward; hardware FLOPs those that are computed: with what activation
checkpointing computes again, what a fit makes weights by, what Muon's updates take. Neither is ever added to the other.
"""

from typing import Literal, Self

from transformers import PretrainedConfig

from pipeline import models
from pipeline.accounting.flops import CONVENTION, Cost
from pipeline.accounting.recorded_runs import Content

LANGUAGE = ("masked-lm", "causal-lm")
"""Objectives whose heads run at some positions of a sequence."""


class PerToken(Content):
    """FLOPs of a sample, divided by its tokens."""

    forward: float
    model: float
    hardware: float


class Sample(Content):
    """FLOPs of one sequence or image. tokens: of an image its patches and the tokens before them; head_positions: at
    how many of them the head of a language model runs, None without one; forward: of a forward pass; model, hardware:
    of training on it."""

    unit: Literal["sequence", "image"]
    tokens: int
    head_positions: int | None
    forward: int
    model: int
    hardware: int
    per_token: PerToken

    @classmethod
    def of(cls, config: PretrainedConfig, positions: dict[str, int], price: Cost, checkpointing: bool) -> Self:
        """positions: those that the price was counted by. checkpointing: whether layers are computed again."""
        family, tokens = models.of_config(config), positions["token"]
        counts = {"forward": price.forward, "model": price.train}
        counts["hardware"] = price.train + (price.recompute if checkpointing else 0)
        return cls(
            unit="image" if family.data == "images" else "sequence",
            tokens=tokens,
            head_positions=positions["scored"] if family.head(config).name in LANGUAGE else None,
            **counts,
            per_token=PerToken(**{name: count / tokens for name, count in counts.items()}),
        )


class DeviceHours(Content):
    """Hours of one device for the model FLOPs of a training: model / (mfu x peak x 3600). peak: FLOP/s of a device;
    peak_of: where it is from, in words."""

    hours: float
    mfu: float
    peak: float
    peak_of: str


class Training(Content):
    """FLOPs of a whole training. at_most: whether a target (`stop`) may end it earlier; evaluation: forward passes
    beside it, None where none are planned."""

    samples: int
    at_most: bool
    steps: int | None
    model: int
    hardware: int
    evaluation: int | None
    device_hours: DeviceHours | None


class ModelEstimate(Content):
    """A model by a config.json. head: what it ends with; every: of so many layers the first is checkpointed, 0: none;
    training: of the length that was asked for."""

    family: str
    head: str
    parameters: int
    activation_checkpointing: int
    sample: Sample
    training: Training | None


class ZeroMemory(Content):
    """Bytes of a rank's model states in a ZeRO stage; held: all but the bucket."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    bucket: int
    held: int


class Memory(Content):
    """Bytes of a rank, as a dry run estimates them. zero_stage: the stage's own."""

    zero_stage: int
    zero_stages: dict[int, ZeroMemory]
    activations: int
    save_copy: int
    besides: int
    new_entries: int | None
    offloaded: bool


class StageEstimate(Content):
    """A stage of a run; of an expansion, which trains nothing, there are parameters and disk alone. batch: samples of a
    step; training: None where its number of steps is not known; disk: bytes of its checkpoints at most."""

    name: str
    kind: str
    model: str
    parameters: int
    batch: int | None = None
    activation_checkpointing: int | None = None
    sample: Sample | None = None
    training: Training | None = None
    memory: Memory | None = None
    disk: int


class RunEstimate(Content):
    """The sums over all stages; None where those of one are not known. disk: bytes of checkpoints, besides those that
    lie there; data: what they are, (what, value)."""

    name: str
    ranks: int
    data: dict[str, str]
    stages: list[StageEstimate]
    model: int | None
    hardware: int | None
    evaluation: int | None
    device_hours: float | None
    disk: int


class Estimate(Content):
    """Of a config.json `model`, of a run's config `run`; the other is None."""

    format: Literal[1] = 1
    config: str
    convention: str = CONVENTION
    model: ModelEstimate | None = None
    run: RunEstimate | None = None

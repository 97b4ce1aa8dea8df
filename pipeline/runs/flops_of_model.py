"""`lemon flops` of a Hugging Face config.json, or of a folder with one: what its files say of the model beside them
counts, no model is built."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.accounting import head
from pipeline.accounting.estimate import Estimate, ModelEstimate, Sample, Training
from pipeline.accounting.flops import cost
from pipeline.checkpoints import detect_layout
from pipeline.config.limits import MOST_UNITS
from pipeline.durations import Duration
from pipeline.errors import UserError, placed
from pipeline.models import POSITIONS, Family
from pipeline.runs.device_hours import Devices

logger = logging.getLogger(__name__)

PRECISION = "bf16"
"""In which a device's peak is taken, since a config.json says nothing of training."""


@dataclass(frozen=True)
class Asked:
    """sequence_length: tokens, of text alone; head_share: of a sequence's positions, at which the language-model head
    runs, None: as this package trains it; every: of so many layers the first is checkpointed, 0: none; train_for: the
    length of a training; devices: what trains it."""

    sequence_length: int | None = None
    head_share: float | None = None
    every: int = 0
    train_for: Duration | None = None
    devices: Devices | None = None


def of_model(path: Path, asked: Asked) -> Estimate:
    """path: a config.json, or a folder with one. Raises UserError."""
    place = path / "config.json" if path.is_dir() else path
    if not place.exists() and (path / "config.yaml").exists():
        raise UserError(f"{path}: is a run's folder; name its {path / 'config.yaml'}, or one of its checkpoints")
    family, config = models.read_config(place)
    if path.is_dir() and detect_layout(path):
        config = _as_its_files_say(path, config)
    with placed(place):
        return Estimate(config=str(path), model=_model(family, config, asked))


def _as_its_files_say(folder: Path, stated: PretrainedConfig) -> PretrainedConfig:
    """The config of the model that a folder's files hold, and what they decide of it, which is said; where they hold
    another than its config.json describes, the config as it is written, which is said too."""
    try:
        state, config = checkpoints.read(folder)
    except UserError as error:
        logger.warning(f"{error}; the model is counted as its config.json says")
        return stated
    for line in state.decided_by_files.values():
        logger.warning(f"{folder}: {line}")
    return config


def _model(family: Family, config: PretrainedConfig, asked: Asked) -> ModelEstimate:
    architecture, positions = models.architecture_of(config), _positions(family, config, asked)
    price = cost(architecture, positions, asked.every or 1, drops=models.drops_branches(config))
    sample = Sample.of(config, positions, price, asked.every > 0)
    return ModelEstimate(
        family=family.name,
        head=family.head(config).name,
        parameters=architecture.parameters,
        activation_checkpointing=asked.every,
        sample=sample,
        training=_training(sample, asked),
    )


def _positions(family: Family, config: PretrainedConfig, asked: Asked) -> dict[str, int]:
    """What FLOPs are counted by. Raises UserError for a length or a share that the model cannot have."""
    head.require_share(config, asked.head_share)
    tokens = asked.sequence_length
    if family.data == "images":
        if tokens is not None:
            raise UserError(
                f"--sequence-length {tokens}: a '{family.name}' reads images of the size that its config says; leave "
                "it out"
            )
        return _of_images(family, config)
    if tokens is None:
        raise UserError(f"a '{family.name}' reads sequences; say how many tokens one has: --sequence-length 512")
    _require_length(family, config, tokens)
    share = head.TRAINED if asked.head_share is None else asked.head_share
    return family.positions(config, {"block": tokens, "scored": head.at_share(share, tokens)})


def _of_images(family: Family, config: PretrainedConfig) -> dict[str, int]:
    positions = family.positions(config, {})
    if not positions["patch"]:
        raise UserError(f"images of {config.image_size} pixels a side hold no patch of {config.patch_size}")
    return positions


def _require_length(family: Family, config: PretrainedConfig, tokens: int) -> None:
    """Raises UserError for more tokens than the model has positions; rotary ones have no end."""
    looked_up = "positions" in models.architecture_of(config).spaces
    most = getattr(config, POSITIONS) - family.reserved if looked_up else MOST_UNITS
    if tokens > most:
        reason = "its table of positions has rows for" if looked_up else "taken are at most"
        raise UserError(f"--sequence-length {tokens}: {reason} {most} tokens; choose fewer")


def _training(sample: Sample, asked: Asked) -> Training | None:
    """Raises UserError for a length in a unit that a model alone does not tell, and for devices without a length."""
    length = asked.train_for
    if length is None:
        if asked.devices:
            raise UserError("device-hours are those of a training; say how long it is: --train-for '1e9 tokens'")
        return None
    known = {"samples": 1} | ({"tokens": sample.tokens} if sample.unit == "sequence" else {})
    if length.unit not in known:
        raise UserError(f"--train-for '{length}': a model alone tells the FLOPs of {' or '.join(known)}; give those")
    samples = math.ceil(length.amount / known[length.unit])
    model = samples * sample.model
    return Training(
        samples=samples,
        at_most=False,
        steps=None,
        model=model,
        hardware=samples * sample.hardware,
        evaluation=None,
        device_hours=asked.devices.hours(model, PRECISION) if asked.devices else None,
    )

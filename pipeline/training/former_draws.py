"""A stage that an earlier release has begun, and whose images this one augments by other draws."""

import logging

from pipeline.config.data import ImageData, TextData
from pipeline.data.augment import DRAWS
from pipeline.records.stage_facts import TrainFacts

logger = logging.getLogger(__name__)


def tell(stage: str, data: TextData | ImageData, earlier: TrainFacts, step: int) -> None:
    """Say so, where it is one that goes on from `step`. Only what `deit` draws has changed since version 1."""
    if isinstance(data, ImageData) and data.augment == "deit" and earlier.settings.image_draws < DRAWS:
        logger.warning(
            f"{stage}: begun by a release that drew RandAugment and erasing otherwise (data.augment deit): from step "
            f"{step} on its images are augmented by other draws than there, in the same distribution"
        )

"""Host memory that a save in the background takes: the copy that is written while the training goes on."""

from pipeline.config.schema import TrainStage


def save_copy(stage: TrainStage, parameters: int, kept: int, world: int) -> int:
    """Bytes on rank 0, which holds most: DeepSpeed's stages 0 to 2 have it write the module too. Kept between saves;
    0 where saving is blocking. kept: numbers of the optimizer's state. Buffers and frozen parameters, which our models
    do not have, are not counted."""
    if stage.save == "blocking":
        return 0
    half = stage.in_16_bits
    module = 0 if stage.zero_stage == 3 else (2 if half else 4) * parameters
    master = 4 if half or stage.zero_stage else 0
    optimizer = master * parameters + 4 * kept
    return module + (-(-optimizer // world) if stage.zero_stage else optimizer)

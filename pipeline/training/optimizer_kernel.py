"""By which code of torch a stage's optimizer computes its updates: as one fused kernel where torch has it. The kernels
differ in the last digits, so a stage that was begun keeps the one that it began with."""

from pipeline.config.schema import TrainStage
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import OptimizerKernel
from pipeline.training.micro_batches import begun_facts


def of_stage(stage: TrainStage, folder: StageFolder, device: str) -> OptimizerKernel:
    """That of the start before, if there is anything to go on from; else the fastest on this type of device."""
    begun = begun_facts(folder)
    return begun.settings.optimizer_kernel if begun else fastest(stage, device)


def fastest(stage: TrainStage, device: str) -> OptimizerKernel:
    """The fastest that torch has on this type of device ("cpu", "cuda")."""
    return "fused" if device in stage.optimizer.fused_on else "default"

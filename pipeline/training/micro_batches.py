"""How the batch of a step is cut. A stage keeps the micro-batches that it began with, on however many ranks it goes on:
each rank takes an equal share of them, and dropout and gradients are those of the same parts of the batch."""

from pipeline.checkpoints import publish
from pipeline.config.schema import TrainStage
from pipeline.errors import UserError
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import TrainFacts


def size_of(stage: TrainStage, ranks: int) -> int:
    """Samples of a micro-batch, where they are still to be found the most that there may be. Raises UserError where the
    batch is not a whole number of them for every rank, or where DeepSpeed would sum them otherwise than the stage
    says."""
    stated = stage.micro_batch if isinstance(stage.micro_batch, int) else None
    size = stated or stage.batch // ranks
    if size == 0 or stage.batch % size or (stated is None and stage.batch % (size * ranks)):
        raise UserError(
            f"stages.{stage.name}: batch {stage.batch} is not a multiple of micro_batch {size} x {ranks} ranks; "
            "choose a batch that is"
        )
    if (count := stage.batch // size) % ranks:
        would_do = [str(number) for number in range(1, count + 1) if count % number == 0]
        raise UserError(
            f"stages.{stage.name}: the {count} micro-batches of {size} samples a step do not divide among {ranks} "
            f"ranks; start it on {' or '.join(would_do)}, or set stages.{stage.name}.micro_batch, which draws other "
            "dropout"
        )
    _require_sums(stage, count // ranks)
    return size


def candidates(stage: TrainStage, ranks: int) -> list[int]:
    """The sizes that are tried where they are to be found: a rank's share of the batch, halved as long as it is even.
    Raises UserError as `size_of` does."""
    sizes = [size_of(stage, ranks)]
    while sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    return sizes


def _require_sums(stage: TrainStage, count: int) -> None:
    """Stage 0 of DeepSpeed sums the micro-batches of a step in the training's precision alone."""
    if stage.zero_stage == 0 and stage.sums == "fp32" and count > 1:
        raise UserError(
            f"stages.{stage.name}.zero_stage: 0 in bf16 sums the {count} micro-batches of a rank and step in bf16; "
            "choose zero_stage 1, which sums them in fp32, or gradient_sums bf16"
        )


def divide(stage: TrainStage, ranks: int) -> bool:
    """Whether a step's micro-batches do among so many ranks."""
    try:
        size_of(stage, ranks)
    except UserError:
        return False
    return True


def as_begun(stage: TrainStage, folder: StageFolder) -> TrainStage:
    """The stage with the micro-batches of the start before, if there is anything to go on from. What the config says
    counts."""
    begun = begun_facts(folder)
    if begun is None or isinstance(stage.micro_batch, int):
        return stage
    return stage.model_copy(update={"micro_batch": begun.settings.micro_batch})


def change(stage: TrainStage, folder: StageFolder) -> str | None:
    """What the config changes of the micro-batches that a stage goes on with, in words."""
    begun = begun_facts(folder)
    if begun is None or stage.micro_batch in (None, "auto", begun.settings.micro_batch):
        return None
    return f"micro_batch was {begun.settings.micro_batch}, is now {stage.micro_batch}: dropout draws other masks"


def begun_facts(folder: StageFolder) -> TrainFacts | None:
    """The facts of a stage that has a checkpoint of its own."""
    facts = folder.facts
    return facts if isinstance(facts, TrainFacts) and publish.newest(folder.checkpoints) else None

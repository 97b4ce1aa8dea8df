"""Where the samples of a training stage begin: with the first, or behind those that its weights were trained on.

The samples of a run are numbered without end (data/sampler.py). A checkpoint's provenance says which number comes next
behind all that its weights were trained on, fits of growths included; a stage with `data: {continue: true}` begins with
it, so that no sample of an epoch is read twice.
"""

from pathlib import Path

from pipeline.checkpoints import manifest
from pipeline.data import Prepared
from pipeline.errors import UserError
from pipeline.records.data_position import KEY, DataPosition


def recorded(checkpoint: Path | None) -> DataPosition | None:
    """Where the samples of a checkpoint ended; None where its manifest does not say."""
    content = manifest.read_if_any(checkpoint) if checkpoint else None
    known = content.provenance.get(KEY) if content else None
    return DataPosition(**known) if known else None


def first_behind(start: Path, data: Prepared, seed: int, where: str, repeats: int = 1) -> int:
    """The number of the first sample behind those that the checkpoint `start` was trained on. where: the key that asks
    for it. repeats: views of an image. Raises UserError where that is not known, or they were in another order."""
    last, here = recorded(start), DataPosition.of(0, data.facts, seed, repeats)
    if last is None:
        raise UserError(
            f"{where}: {start}: nothing says on which samples it was trained; leave the key out, or start from a "
            "checkpoint that a stage of this version has saved"
        )
    first = last.in_order_of(here)
    if first is None:
        raise UserError(
            f"{where}: {start}: was trained on {last.words}, and this stage reads {here.words}, in another order; "
            "leave the key out"
        )
    return first

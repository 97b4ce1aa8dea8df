"""What an earlier start of a stage has done behind the checkpoint from which the next one goes on: it stays in the
ledger, as lost."""

from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import TrainFacts
from pipeline.records.stage_records import BESIDE, LedgerEntry


def account_for(folder: StageFolder, earlier: TrainFacts | None, step: int) -> None:
    """Bring the ledger of a stage to `step`. earlier: the facts of the start before, None where there was none. Each
    call may be the last thing that a process does: the next one adds nothing twice."""
    folder.ledger.mend()
    if earlier is not None and (entries := _unrecorded(folder, earlier)):
        folder.ledger.append(*entries)
    folder.counter.write(max(step, 0))
    folder.ledger.restart(step)


def _unrecorded(folder: StageFolder, earlier: TrainFacts) -> list[LedgerEntry]:
    """The steps between the last line of the ledger and the kill."""
    last = max((entry.step for entry in folder.ledger.accounted() if entry.kind == "train"), default=0)
    finished = folder.counter.read()
    count, cost = finished - last, earlier.flops_per_step
    if count <= 0:
        return []
    samples, tokens = count * earlier.samples_per_step, count * earlier.tokens_per_step
    trained = LedgerEntry(step=finished, kind="train", flops=count * cost.train, samples=samples, tokens=tokens)
    besides = [
        LedgerEntry(step=finished, kind=kind, flops=count * getattr(cost, kind), samples=0, tokens=0)
        for kind in BESIDE
        if getattr(cost, kind)
    ]
    return [trained, *besides]

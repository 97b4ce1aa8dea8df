"""A disturbed run at its end, against the one that nobody disturbed."""

import json
import math
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from pipeline.checkpoints import manifest
from tests.helpers.plain_files import differences
from tests.helpers.runs import BATCH, ledger, records, steps_in_all
from tests.soak.chains import SAVE_EVERY, TRAINED, Chain

MEASURED = ("kind", "step", "loss", "lr", "grad_norm", "window", "eval_loss", "top1")
"""What two runs must record alike; the rest are times."""
ROUNDING = 1e-12
"""Relative, of a mean whose parts were added up in another order."""
PARTS = "parts"
"""The key of a record that is the mean of several, with their number."""
FIRST = 2
"""Differences of a checkpoint that are told."""


def gaps(chain: Chain, plain: Chain, redone: Mapping[str, int]) -> Iterator[str]:
    """Where a finished run differs from the one that nobody disturbed. redone: steps of each stage."""
    for stage in TRAINED:
        if not _alike(_measured(chain.run, stage), _measured(plain.run, stage)):
            yield f"{stage}: other metrics"
        if _spent(chain.run, stage) != _spent(plain.run, stage):
            yield f"{stage}: another ledger of what counts"
        more = steps_in_all(chain.run, stage) - steps_in_all(plain.run, stage)
        if more != redone.get(stage, 0):
            yield f"{stage}: {more} steps more in the ledger, {redone.get(stage, 0)} were redone"
    for part in chain.variant.parts:
        yield from (f"{part}: {gap}" for gap in _differing(_results(chain, part), _results(plain, part)))
    yield from _reported(_report(chain.run), _report(plain.run), sum(redone.values()))


def _measured(run: Path, stage: str) -> list[dict]:
    kept = [record for record in records(run, stage) if record["kind"] != "save"]
    return [{key: record[key] for key in MEASURED if key in record} for record in kept]


def _alike(ours: list[dict], plain: list[dict]) -> bool:
    """To the bit; but a run that was asked to stop has recorded a step more, and means over parts of a window are
    weighted and added up."""
    steps = {record["step"] for record in plain if record["kind"] == "train"}
    merged: list[dict] = []
    for record in ours:
        parts = [merged.pop()] if merged and merged[-1]["kind"] == "train" and merged[-1]["step"] not in steps else []
        merged.append(_joined([*parts, record]) if parts else record)
    return len(merged) == len(plain) and all(map(_close, merged, plain))


def _joined(records: list[dict]) -> dict:
    total = sum(record["window"] for record in records)
    means = {key: sum(r[key] * r["window"] for r in records) / total for key in ("loss", "grad_norm")}
    return {**records[-1], **means, "window": total, PARTS: len(records)}


def _close(ours: dict, plain: dict) -> bool:
    """Whether two records say the same; means that were added up, but for rounding."""
    rounding = ROUNDING if ours.pop(PARTS, 0) else 0.0
    if ours.keys() != plain.keys() or ours["kind"] != plain["kind"]:
        return False
    return all(math.isclose(ours[key], plain[key], rel_tol=rounding) for key in ours if key != "kind")


def _spent(run: Path, stage: str) -> dict[tuple[str, int], list[int]]:
    """What counts, added up by kind until each evaluation or save, at which every run has a line."""
    sums: dict[tuple[str, int], list[int]] = {}
    for entry in ledger(run, stage):
        place = entry["kind"], -(-entry["step"] // SAVE_EVERY)
        parts = sums.setdefault(place, [0, 0, 0])
        sums[place] = [a + entry[key] for a, key in zip(parts, ("flops", "samples", "tokens"), strict=True)]
    return sums


def _report(run: Path) -> dict:
    (content,) = json.loads((run / "report.json").read_text())["runs"]
    return content


def _reported(ours: dict, plain: dict, redone: int) -> Iterator[str]:
    """redone: steps; what was lost is theirs, and evaluations."""
    yield from (f"report: {text}" for text in ours["warnings"] if text not in plain["warnings"])
    spent, expected = ours["ledger"]["by_kind"], plain["ledger"]["by_kind"]
    lost = spent.pop("lost", {"samples": 0})["samples"]
    if spent != expected:
        yield f"report: {spent} instead of {expected}"
    if lost < redone * BATCH:
        yield f"report: {lost} samples lost, {redone} steps were redone"


def _results(chain: Chain, part: str) -> list[Path]:
    return [chain.resharded] if part == "reshard" else chain.checkpoints(part)


def _differing(ours: list[Path], plain: list[Path]) -> Iterator[str]:
    """Of a run that was asked to stop between two saves, the second newest may be of another step."""
    if len(ours) != len(plain) or ours[-1].name != plain[-1].name:
        yield f"checkpoints {[path.name for path in ours]} instead of {[path.name for path in plain]}"
        return
    for one, other in ((one, other) for one, other in zip(ours, plain, strict=True) if one.name == other.name):
        manifest.verify(one)
        if manifest.read(one).files != manifest.read(other).files:
            for place, gap in islice(differences(other, one), FIRST):
                yield f"{one.name}: {'/'.join(map(str, place))}: {gap}"

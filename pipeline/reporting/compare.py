"""What an expansion saved: training FLOPs to a target loss, from scratch and expanded.

The published comparison counts training FLOPs (forward, backward, recomputation) of the expanded model alone: *given*
the small model. *All-in* adds the whole training of every model it was grown from.
"""

from pipeline.ledger import crossing
from pipeline.reporting.read import Ancestor, Run, Stage, origins
from pipeline.reporting.units import decimal, flops


def compare_runs(runs: list[Run], target: float | None) -> list[tuple[list[dict], list[str]]]:
    """For each run its comparisons, and sentences that say why something could not be compared.

    `target` is a loss; None: each baseline's own final evaluation loss. A baseline is looked for in the run itself,
    then in the other runs on the same data. Compared is what was grown, or began from a checkpoint outside any run.
    """
    return [_compare_run(run, [run, *(other for other in runs if other is not run)], target) for run in runs]


def _compare_run(run: Run, places: list[Run], target: float | None) -> tuple[list[dict], list[str]]:
    expansions = [stage.name for stage in run.stages.values() if stage.kind == "expand"]
    comparisons, remarks, used = [], [], set()
    for stage in run.trained:
        chain, unknown = origins(run, stage)
        if unknown is None and not any(ancestor.stage.kind == "expand" for ancestor in chain):
            continue
        used |= {ancestor.stage.folder.path.resolve() for ancestor in chain}
        baseline = _baseline(run, stage, places)
        if reason := _obstacle(stage, baseline):
            remarks.append(reason)
        else:
            comparisons.append(_compare(run, stage, chain, unknown, *baseline, target))
    for name in expansions:
        if run.stages[name].folder.path.resolve() not in used:
            remarks.append(f"Expansion '{name}' is not compared: no training stage has started from it yet.")
    if not expansions and not comparisons and not remarks:
        remarks.append("Nothing is compared: the run has no expansion.")
    return comparisons, remarks


def _baseline(run: Run, stage: Stage, places: list[Run]) -> tuple[Run, Stage] | None:
    """The evaluated training stage of the same model that began from scratch."""
    for place in places:
        for other in place.trained:
            same = all(other.facts.get(key) == stage.facts.get(key) for key in ("model", "family", "sizes"))
            if same and other.facts.get("origin") is None and other.evaluations and place.recipe == run.recipe:
                return place, other
    return None


def _obstacle(stage: Stage, baseline: tuple[Run, Stage] | None) -> str | None:
    model = stage.facts["model"]
    if not stage.evaluations:
        return f"Stage '{stage.name}' is not compared: it has no evaluation yet."
    if baseline is None:
        return (
            f"Stage '{stage.name}' is not compared: no stage that trains model '{model}' from scratch has been "
            f"evaluated; train one without 'start', or add its run to the report."
        )
    return None


def _compare(run: Run, stage: Stage, chain: list[Ancestor], unknown: str | None, place: Run, baseline: Stage,
             target: float | None) -> dict:
    """One comparison: pure data, with the curves that its figure draws."""
    grown = next((i for i, ancestor in enumerate(chain) if ancestor.stage.kind == "expand"), len(chain))
    sources = [ancestor for ancestor in reversed(chain[grown:]) if ancestor.stage.kind == "train"]
    expanded = joined([*reversed(chain[:grown]), Ancestor(stage, None)])
    loss = baseline.evaluations[-1]["loss"] if target is None else target
    scratch, given = reach(baseline.evaluations, loss), reach(expanded, loss)
    cost = None if unknown else sum(source.cost for source in sources)
    total = None if given["flops"] is None or cost is None else given["flops"] + cost
    return {
        "stage": stage.name,
        "model": stage.facts["model"],
        "baseline": {"run": None if place is run else place.title, "stage": baseline.name},
        "target": {"loss": loss, "meaning": _meaning(baseline, target)},
        "expansion": _expansion(chain[grown].stage) if grown < len(chain) else None,
        "source": {
            "stages": [{"stage": source.stage.name, "flops": source.cost} for source in sources],
            "flops": cost,
            "unknown": unknown,
        },
        "scratch": scratch,
        "given": given | {"saving_percent": saving(given["flops"], scratch["flops"])},
        "all_in": {"flops": total, "saving_percent": saving(total, scratch["flops"])},
        "curves": {
            "scratch": baseline.evaluations,
            "expanded": expanded,
            "sources": [] if unknown else _source_curves(sources),
        },
    }


def _expansion(stage: Stage) -> dict:
    """How the stage was grown: by the last expansion before it."""
    return {"stage": stage.name, "method": stage.facts.get("method"), "lossless": stage.facts.get("lossless")}


def _source_curves(sources: list[Ancestor]) -> list[dict]:
    """The curve of each source, starting where the one before it ended."""
    return [
        {"stage": source.stage.name, "points": joined(sources[: index + 1])[-len(source.evaluations):]}
        for index, source in enumerate(sources) if source.evaluations
    ]


def _meaning(baseline: Stage, target: float | None) -> str:
    if target is not None:
        return "as given"
    if baseline.finished:
        return f"the final evaluation loss of '{baseline.name}'"
    last = baseline.evaluations[-1]["step"]
    where = f"step {last} of {baseline.facts['steps']}"
    return f"the latest evaluation loss of '{baseline.name}', which is unfinished ({where})"


def joined(parts: list[Ancestor]) -> list[dict]:
    """The evaluations of stages that follow each other, the cost of each added to the next."""
    points, offset = [], 0
    for part in parts:
        points += [point | {"flops": point["flops"] + offset} for point in part.evaluations]
        offset += part.cost
    return points


def reach(points: list[dict], target: float) -> dict:
    """FLOPs at which `target` was reached (None: it was not), the lowest evaluation and the last loss."""
    cost = crossing([(point["step"], point["flops"], point["loss"]) for point in points], target)
    best = min(points, key=lambda point: point["loss"])
    return {"flops": cost, "lowest": {key: best[key] for key in ("step", "flops", "loss")}, "last": points[-1]["loss"]}


def saving(cost: int | None, scratch: int | None) -> float | None:
    """Per cent of `scratch` saved; negative: it cost more. None where either is unknown, or nothing was to be saved."""
    return 100 * (scratch - cost) / scratch if cost is not None and scratch else None


def missed(place: dict, target: float) -> str:
    """How close a curve came that did not reach its target."""
    lowest = place["lowest"]
    spent = f"step {lowest['step']}, {flops(lowest['flops'])}"
    return f"lowest loss {decimal(lowest['loss'])} ({spent}), target {decimal(target)}"

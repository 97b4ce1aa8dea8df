"""The report's tables as data: the stages, what was spent, whether the expansion kept the function, the speed."""

import math
from statistics import median

from pipeline.ledger import TRAINING
from pipeline.reporting.read import Run, Stage, origins

KINDS = (*TRAINING, "evaluate", "verify", "grow")
"""The order in which kinds of cost are listed; any other follows."""
MEASURED = {"tolerance": 0.0, "drift": [], "symmetry": {}, "loss": None, "stored": None}
"""What a verification may hold beside its relative differences, and what stands for it where it holds none."""
POINTS = 600
"""Points of a drawn series: more cannot be told apart in a 1000-pixel column."""


def stages(run: Run) -> list[dict]:
    """Every stage of the config with its facts, its curve and its thinned training record."""
    return [
        {
            "stage": stage.name,
            "kind": stage.kind,
            "state": state(stage),
            "finished": stage.finished,
            "step": stage.step,
            "facts": stage.facts,
            "evaluations": stage.evaluations,
            "training": training(stage.steps),
        }
        for stage in run.stages.values()
    ]


def state(stage: Stage) -> str:
    """`finished`, or how far it has come."""
    if not stage.started:
        return "not started"
    if stage.finished:
        return "finished"
    return f"at step {stage.step} of {stage.facts['steps']}" if stage.kind == "train" else "running"


def unfinished(run: Run) -> list[str]:
    """`stage 'large' at step 300 of 600` for every stage that is not finished."""
    return [f"stage '{stage.name}' {state(stage)}" for stage in run.stages.values() if not stage.finished]


def training(steps: list[dict]) -> dict:
    """Thinned series of [step, value] pairs: `raw` keeps the lowest and highest loss of each bin, so that a spike
    survives; `smooth` is a centred mean over 2 % of the record; `rate` is the learning rate. `diverged` is the first
    step whose loss is not a number, or None."""
    diverged = next((record["step"] for record in steps if not math.isfinite(record["loss"])), None)
    finite = [record for record in steps if math.isfinite(record["loss"])]
    width = -(-len(finite) // (POINTS // 2)) if len(finite) > POINTS else 1
    losses = [[record["step"], record["loss"]] for record in finite]
    return {
        "raw": extremes(losses, width),
        "smooth": smooth(losses, len(losses) // 50)[::width],
        "rate": [[record["step"], record["lr"]] for record in finite][::width],
        "diverged": diverged,
    }


def extremes(pairs: list[list], width: int) -> list[list]:
    """The lowest and the highest of every `width` pairs, in order of the step."""
    kept: list[list] = []
    for start in range(0, len(pairs), width):
        bin_ = pairs[start : start + width]
        ends = {min(bin_, key=lambda pair: pair[1])[0], max(bin_, key=lambda pair: pair[1])[0]}
        kept += [pair for pair in bin_ if pair[0] in ends]
    return kept


def smooth(pairs: list[list], width: int) -> list[list]:
    """Centred running mean over `width` pairs, narrower at the ends."""
    sums = [0.0]
    for _, value in pairs:
        sums.append(sums[-1] + value)
    averaged = []
    for index, (step, _) in enumerate(pairs):
        reach = min(width // 2, index, len(pairs) - 1 - index)
        low, high = index - reach, index + reach + 1
        averaged.append([step, (sums[high] - sums[low]) / (high - low)])
    return averaged


def ledger(run: Run) -> dict:
    """FLOPs, samples and tokens by stage and kind as exact integers, with their sums."""
    rows = [row for stage in run.stages.values() for row in _spent(stage)]
    total = sum(row["flops"] for row in rows)
    for row in rows:
        row["share_percent"] = 100 * row["flops"] / total if total else 0.0
    kinds = sorted({row["kind"] for row in rows}, key=_order)
    return {
        "rows": rows,
        "by_kind": {kind: _sums([row for row in rows if row["kind"] == kind]) for kind in kinds},
        "training": _sums([row for row in rows if row["kind"] in TRAINING]),
        "everything": _sums(rows),
    }


def _spent(stage: Stage) -> list[dict]:
    spent: dict[str, dict] = {}
    for entry in stage.folder.ledger:
        row = spent.setdefault(entry["kind"], {"flops": 0, "samples": 0, "tokens": 0})
        for unit in row:
            row[unit] += entry[unit]
    return [{"stage": stage.name, "kind": kind} | spent[kind] for kind in sorted(spent, key=_order)]


def _order(kind: str) -> tuple[int, str]:
    return (KINDS.index(kind) if kind in KINDS else len(KINDS), kind)


def _sums(rows: list[dict]) -> dict[str, int]:
    return {unit: sum(row[unit] for row in rows) for unit in ("flops", "samples", "tokens")}


def continuity(run: Run) -> list[dict]:
    """For every expansion that has started: how it was made and what it promised; the source's last evaluation loss
    beside the step-0 evaluation loss of the stages trained from it; everything that its verification measured."""
    return [_continuity(run, stage) for stage in run.stages.values() if stage.kind == "expand" and stage.started]


def _continuity(run: Run, expansion: Stage) -> dict:
    chain, unknown = origins(run, expansion)
    before = chain[0].evaluations[-1]["loss"] if chain and chain[0].evaluations else None
    followers = [stage for stage in run.trained if stage.facts.get("origin") == expansion.name]
    facts, found = expansion.facts, expansion.facts.get("verification", {})
    return {
        "stage": expansion.name,
        "method": facts.get("method"),
        "optimizer_state": facts.get("optimizer_state"),
        "source": chain[0].stage.name if chain else unknown,
        "source_loss": before,
        "started": [_start(stage, before) for stage in followers],
        "lossless": facts.get("lossless"),
        "lossy": expansion.lossy,
        "verification": _verdicts(found),
        **{key: found.get(key, nothing) for key, nothing in MEASURED.items()},
    }


def _start(stage: Stage, before: float | None) -> dict:
    loss = next((point["loss"] for point in stage.evaluations if point["step"] == 0), None)
    known = loss is not None and before is not None
    return {"stage": stage.name, "loss": loss, "difference": loss - before if known else None}


def _verdicts(verification: dict) -> list[dict]:
    gates = verification.get("gates", {})
    return [
        {
            "precision": precision,
            "difference": verification[precision],
            "gate": gates.get(precision),
            "within": verification[precision] <= gates[precision] if precision in gates else None,
        }
        for precision in ("float64", "float32") if precision in verification
    ]


def speed(run: Run) -> list[dict]:
    """Medians over the recorded steps. `wall_seconds`: the time of all steps, without evaluation and saving."""
    return [_speed(stage) for stage in run.trained if stage.steps]


def _speed(stage: Stage) -> dict:
    def middle(key: str) -> float | None:
        known = [record[key] for record in stage.steps if record.get(key) is not None]
        return median(known) if known else None

    wall, before = 0.0, 0
    for record in stage.steps:  # a record may stand for several steps (log_every)
        wall += record["seconds"] * max(1, record["step"] - before)
        before = record["step"]
    return {
        "stage": stage.name,
        "samples_per_second": middle("samples_per_second"),
        "tokens_per_second": middle("tokens_per_second"),
        "mfu": middle("mfu"),
        "wall_seconds": wall,
        "world_size": stage.facts["settings"].get("world_size"),
        "device": stage.facts.get("device"),
    }


def models(run: Run) -> list[dict]:
    """The sizes of every model that a stage made or trained, each once."""
    seen: dict[str, dict] = {}
    for stage in run.stages.values():
        if stage.started:
            facts = stage.facts
            sizes = {"family": facts["family"], **facts["sizes"], "parameters": facts["parameters"]}
            seen.setdefault(facts["model"], {"model": facts["model"], **sizes})
    return list(seen.values())


def warnings(stages: list[dict]) -> list[str]:
    """What a reader must know before believing a curve: training that broke down."""
    broken = {stage["stage"]: stage["training"]["diverged"] for stage in stages}
    return [
        f"Stage '{stage}' broke down: its training loss is not a number at step {step}."
        for stage, step in broken.items() if step is not None
    ]

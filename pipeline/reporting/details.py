"""The sections behind the headline: the ledger, the stages, speed, settings."""

import json

from pipeline.reporting.markup import Content, Markup, Number, code, element, section, table
from pipeline.reporting.units import count, decimal, duration, flops, percent, three_digits

NOTHING = Markup("")
KINDS = {
    "train": "forward and backward",
    "recompute": "recomputation (activation checkpointing)",
    "evaluate": "evaluation",
    "verify": "verification of the expansion",
    "grow": "expansion",
}


def ledger(run: dict) -> Markup:
    """FLOPs, samples and tokens by stage and kind, with sums."""
    book = run["ledger"]
    if not book["rows"]:
        return NOTHING
    rows, before = [], None
    for row in book["rows"]:
        rows.append([row["stage"] if row["stage"] != before else "", *_entry(row, book)])
        before = row["stage"]
    sums = [["all stages", *_entry({"kind": kind} | spent, book)] for kind, spent in book["by_kind"].items()]
    sums.append(["Training FLOPs", *_entry(book["training"], book)])
    sums.append(["Everything", *_entry(book["everything"], book)])
    heads = ["stage", "spent on", "FLOPs", "share", "samples", "tokens"]
    words = "Savings count training FLOPs: forward, backward and recomputation. The other kinds are spent as well."
    return section("FLOPs ledger", element("p", words), table(heads, rows, sums))


def _entry(row: dict, book: dict) -> list[Content]:
    total = book["everything"]["flops"]
    share = percent(row["flops"] / total) if total else "–"
    kind = row.get("kind", "")
    amounts = [Number(count(row[unit]) if row[unit] else "–", f"{row[unit]:,}") for unit in ("samples", "tokens")]
    return [KINDS.get(kind, kind), Number(flops(row["flops"]), f"{row['flops']:,} FLOPs"), Number(share), *amounts]


def stages(run: dict) -> Markup:
    """What each stage did and where it ended, and the sizes of the models."""
    rows = [_stage(stage) for stage in run["stages"]]
    measure = "top-1" if run["kind"] == "images" else "perplexity"
    heads = ["stage", "does", "from", "state", "steps", "last evaluation loss", measure]
    parts = [table(heads, rows)]
    if run["models"]:
        keys = list(dict.fromkeys(key for model in run["models"] for key in model))
        cells = [[_size(model.get(key)) for key in keys] for model in run["models"]]
        parts += [element("h4", "Models"), table(keys, cells)]
    return section("Stages and models", *parts)


def _stage(stage: dict) -> list[Content]:
    facts, last = stage["facts"], (stage["evaluations"] or [{}])[-1]
    does = "trains" if stage["kind"] == "train" else f"expands ({facts.get('method', 'not started')}) into"
    extra = percent(last["top1"]) if "top1" in last else decimal(last.get("perplexity"), 2)
    return [
        stage["stage"], f"{does} {facts.get('model', '')}", facts.get("origin") or ("scratch" if facts else "–"),
        stage["state"], Number(count(stage["step"]) if stage["kind"] == "train" else "–"),
        Number(decimal(last.get("loss"))), Number(extra),
    ]


def _size(size: object) -> Content:
    return Number(count(size), f"{size:,}") if isinstance(size, int) else str(size if size is not None else "–")


def speed(run: dict) -> Markup:
    """Throughput and time of every training stage."""
    rows = [
        [one["stage"], Number(_rate(one["samples_per_second"])), Number(_rate(one["tokens_per_second"])),
         Number(percent(one["mfu"])), Number(duration(one["wall_seconds"])), Number(str(one["world_size"] or "–")),
         one["device"] or "–"]
        for one in run["speed"]
    ]
    if not rows:
        return NOTHING
    heads = ["stage", "samples/s", "tokens/s", "MFU", "time in steps", "ranks", "device"]
    note = "Medians over the steps. MFU: model FLOPs over the device's peak; – where the peak is not known."
    time = "The time leaves out evaluation and saving."
    return section("Speed", table(heads, rows), element("p", f"{note} {time}", kind="note"))


def _rate(rate: float | None) -> str:
    return "–" if rate is None else three_digits(rate) if rate < 1000 else count(round(rate))


SHOWN = (
    "schedule", "settings", "flops_per_step", "samples_per_step", "tokens_per_step", "method", "depth", "placement",
    "noise", "optimizer_state", "lossless", "config_change", "device", "versions",
)
"""The facts that the settings tables show; the others have their place above them."""


def settings(run: dict) -> Markup:
    """Every setting and version, a column for each stage."""
    parts = []
    for kind, title in (("train", "Training"), ("expand", "Expansion")):
        stages_ = [stage for stage in run["stages"] if stage["facts"] and stage["kind"] == kind]
        flat = [_flat({key: stage["facts"][key] for key in SHOWN if key in stage["facts"]}) for stage in stages_]
        keys = list(dict.fromkeys(key for facts in flat for key in facts))
        rows = [[code(key), *(facts.get(key, "–") for facts in flat)] for key in keys]
        if rows:
            parts += [element("h4", title), table(["setting", *(stage["stage"] for stage in stages_)], rows)]
    return section("Settings and versions", *parts) if parts else NOTHING


def _flat(facts: dict, prefix: str = "") -> dict[str, str]:
    """Nested facts as `settings.optimizer.eps: 1e-08`."""
    flat: dict[str, str] = {}
    for key, value in facts.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat

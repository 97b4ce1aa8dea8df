"""The model card: what a model is, how it came to be, what that cost, and how to load it."""

import transformers
from transformers import PretrainedConfig

from pipeline import models
from pipeline.export.history import Chapter
from pipeline.models import Family, Head
from pipeline.versions import installed

TASKS = {"masked-lm": "fill-mask", "causal-lm": "text-generation", "classifier": "image-classification", "distilled": "image-classification"}
"""The hub's name for what a model with such a head does; a bare model gives features."""
AUTO = {"masked-lm": "AutoModelForMaskedLM", "causal-lm": "AutoModelForCausalLM"}


def card(name: str, config: PretrainedConfig, dtype: str, chapters: list[Chapter], data: dict, tokenizer: bool) -> str:
    """The content of README.md. data: the facts of the prepared data, empty where they are not known."""
    family, table = models.of_config(config), models.table(config)
    head = family.head(config)
    sizes = ", ".join(f"{space} {size:,}" for space, size in table.measures().items())
    return "\n".join([
        *_front(family, head),
        f"# {name}", "",
        f"A `{family.name}` model (`{head.architecture}`) of {table.parameters:,} parameters, stored in {dtype}: {sizes}.", "",
        "## How it came to be", "", *[f"{number}. {_told(chapter)}" for number, chapter in enumerate(chapters, 1)], "",
        "## What it cost", "", *_ledger(chapters), "",
        "## How to load it", "", *_loading(name, family, head, tokenizer), "", *_inputs(data),
        f"Written by {', '.join(f'{library} {version}' for library, version in installed().items())}.", "",
    ])


def _front(family: Family, head: Head) -> list[str]:
    task = TASKS.get(head.name, "image-feature-extraction" if family.data == "images" else "feature-extraction")
    return ["---", "library_name: transformers", f"pipeline_tag: {task}", "tags:", *[f"- {tag}" for tag in (family.name, "lemon", "model-growth")], "---", ""]


def _told(chapter: Chapter) -> str:
    telling = {"train": _trained, "expand": _expanded, "reshard": _rewritten, "export": _rewritten}.get(chapter.kind, _foreign)
    return f"**{chapter.name}**: {telling(chapter)}."


def _trained(chapter: Chapter) -> str:
    stage, step = chapter.stage, chapter.manifest.get("step", 0)
    batch = f" of {stage['settings']['batch']} samples, {stage['settings']['precision']}" if "settings" in stage else ""
    begin = "from what came before" if (chapter.manifest.get("provenance") or {}).get("origin") else "from scratch"
    count = f"{stage['parameters']:,} parameters " if "parameters" in stage else ""
    loss = f"; evaluation loss {chapter.loss:.4f}" if chapter.loss is not None else ""
    return f"{count}trained {begin} for {step:,} steps{batch}{loss}"


def _expanded(chapter: Chapter) -> str:
    held = chapter.manifest
    changes = [f"{name} {before:,} -> {after:,}" for name, (before, after) in chapter.plan.get("sizes", {}).items() if before != after]
    sizes = f" ({', '.join(changes)})" if changes else ""
    moments = "grown" if held.get("optimizer_state") == "grow" else "started afresh"
    return f"expanded by method `{held.get('method', 'unknown')}`{sizes}, optimizer state {moments}; {_verified(held)}"


def _verified(held: dict) -> str:
    """What the expansion measured: the relative difference of the outputs before and after, beside its gates."""
    found = held.get("verification")
    if not found:
        return "no verification is recorded"
    measured = ", ".join(f"{found[dtype]:.1e} in {dtype} (gate {found['gates'][dtype]:.0e})" for dtype in ("float64", "float32"))
    verdict = "verified lossless" if found["lossless"] else "lossy, as declared" + (f" ({'; '.join(held['lossy'])})" if held.get("lossy") else "")
    return f"{verdict}: relative difference of the outputs {measured}"


def _rewritten(chapter: Chapter) -> str:
    return f"rewritten in the layout '{chapter.manifest.get('layout')}', no weight changed"


def _foreign(chapter: Chapter) -> str:
    there = "made elsewhere" if chapter.place.exists() else "no longer where it was"
    return f"{there}; how it was made, and what that cost, is unknown"


def _ledger(chapters: list[Chapter]) -> list[str]:
    """FLOPs by stage and kind as exact integers, and their sum, which the checkpoint itself knows too."""
    rows = [(chapter.name, kind, spent) for chapter in chapters for kind, spent in (chapter.spent or {}).items()]
    rows += [(chapter.name, "not recorded", None) for chapter in chapters if chapter.spent is None]
    total = (chapters[-1].manifest.get("provenance") or {}).get("flops", "unknown")
    listed = sum(spent["flops"] for _, _, spent in rows if spent)
    if isinstance(total, int) and total > listed:
        rows.append(("before", "not itemised here", {"samples": 0, "tokens": 0, "flops": total - listed}))
    body = [f"| {name} | {kind} | {_count(spent, 'samples')} | {_count(spent, 'tokens')} | {_count(spent, 'flops') or 'unknown'} |"
            for name, kind, spent in rows]
    return ["| stage | kind | samples | tokens | FLOPs |", "|---|---|---:|---:|---:|", *body,
            f"| **everything** | | | | **{f'{total:,}' if isinstance(total, int) else total}** |"]


def _count(spent: dict | None, unit: str) -> str:
    return f"{spent[unit]:,}" if spent and spent[unit] else ""


def _loading(name: str, family: Family, head: Head, tokenizer: bool) -> list[str]:
    """A snippet that runs as it stands, beside the folder."""
    known = hasattr(transformers, head.architecture)
    chosen = head.architecture if known else AUTO.get(head.name, "AutoModel")
    code = [f"from transformers import {chosen}{', AutoTokenizer' if tokenizer else ''}", "", f'model = {chosen}.from_pretrained("{name}")']
    if tokenizer:
        code.append(f'tokenizer = AutoTokenizer.from_pretrained("{name}")')
    note = [] if known else [f"The family `{family.name}` is not one of `transformers`: install this project, whose `pipeline.models` registers it.", ""]
    return [*note, "```python", *([] if known else [f"import pipeline.models  # registers '{family.name}'"]), *code, "```"]


def _inputs(data: dict) -> list[str]:
    """What the model was trained on, sample by sample."""
    if data.get("kind") == "text":
        return [f"It was trained on blocks of {data['block']} tokens: `[CLS]`, text, `[SEP]`.", ""]
    if data.get("kind") == "images":
        mean, std = (", ".join(f"{value:.6g}" for value in data[key]) for key in ("mean", "std"))
        size = f"{data['channels']} x {data['size']} x {data['size']}"
        return [f"It was trained on images of {size} pixels from 0 to 1, less the mean ({mean}) and divided by the deviation ({std}).", ""]
    return []

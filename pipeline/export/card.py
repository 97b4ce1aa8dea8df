"""The model card: what a model is, how it came to be, what that cost, and how to load it."""

from dataclasses import dataclass
from typing import Any

import transformers
import yaml
from transformers import PretrainedConfig

from pipeline import models
from pipeline.accounting.lineage import Ancestor
from pipeline.accounting.totals import Amounts
from pipeline.checkpoints.sidecars import SOURCE_README
from pipeline.export.base_model import RELATIONS, base_model
from pipeline.export.footprint import Footprint
from pipeline.growth.verification.equivalence import measurement_in_words
from pipeline.models import Family, Head
from pipeline.records.versions import installed

TASKS = {
    "masked-lm": "fill-mask",
    "causal-lm": "text-generation",
    "classifier": "image-classification",
    "distilled": "image-classification",
    "pre-training": "fill-mask",
    "next-sentence": "text-classification",
    "text-classifier": "text-classification",
    "token-classifier": "token-classification",
    "question-answering": "question-answering",
}
"""The hub's name for what a model with such a head does; a bare model gives features."""
INHERITED = ("license", "license_name", "license_link", "base_model", "base_model_relation", "language", "datasets")
"""What a card says of licence and lineage, which rewriting its weights does not change."""
AUTO = {"masked-lm": "AutoModelForMaskedLM", "causal-lm": "AutoModelForCausalLM"}


@dataclass(frozen=True)
class Origins:
    """Where a model came from. ancestors: oldest first; source: the card of its source, of which licence and lineage
    are kept; base_model: its id on the hub, where the user states it."""

    ancestors: list[Ancestor]
    footprint: Footprint
    source: str | None = None
    base_model: str | None = None


def card(
    name: str, config: PretrainedConfig, dtype: str, origins: Origins, data: dict[str, Any], tokenizer: bool
) -> str:
    """The content of README.md. data: the facts of the prepared data, empty where they are not known."""
    family, architecture = models.of_config(config), models.architecture_of(config)
    head, ancestors = family.head(config), origins.ancestors
    model = f"A `{family.name}` model (`{head.class_name}`)"
    sizes = ", ".join(f"{space} {size:,}" for space, size in architecture.sizes().items())
    kept = _kept(origins)
    return "\n".join(
        [
            *_front(family, head, kept),
            f"# {name}",
            "",
            f"{model} of {architecture.parameters:,} parameters, stored in {dtype}: {sizes}.",
            "",
            "## How it came to be",
            "",
            *[f"{number}. {_history(ancestor)}" for number, ancestor in enumerate(ancestors, 1)],
            "",
            *_base_model(kept),
            "## What it cost",
            "",
            *_ledger(ancestors),
            "",
            *origins.footprint.lines(),
            "",
            "## How to load it",
            "",
            *_loading(name, family, config, tokenizer),
            "",
            *_inputs(data),
            *_source_card(origins.source),
            f"Written by {', '.join(f'{library} {version}' for library, version in installed().items())}.",
            "",
        ]
    )


def _kept(origins: Origins) -> dict[str, Any]:
    """What the front matter says beside what follows from the model itself."""
    said = inherited(origins.source or "")
    lineage = base_model(origins.ancestors, said, origins.base_model)
    others = {key: value for key, value in said.items() if not key.startswith("base_model")}
    return others | lineage | origins.footprint.front()


def _base_model(front: dict[str, Any]) -> list[str]:
    """What the hub cannot be told of a base model."""
    if "base_model" not in front or "base_model_relation" in front:
        return []
    known = f"{', '.join(RELATIONS[:-1])} and {RELATIONS[-1]}"
    return [
        f"Its `base_model_relation` is left open: the hub knows {known}, and none of them is what was done here.",
        "",
    ]


def _source_card(source: str | None) -> list[str]:
    return [f"The source's own card is [{SOURCE_README}]({SOURCE_README}).", ""] if source else []


def inherited(text: str) -> dict[str, Any]:
    """Licence and lineage as the front matter of a card has them; nothing where there is none."""
    _, opened, rest = text.partition("---\n")
    front, closed, _ = rest.partition("\n---")
    try:
        content = yaml.safe_load(front) if opened and closed and text.startswith("---\n") else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return {key: content[key] for key in INHERITED if key in content} if isinstance(content, dict) else {}


def _front(family: Family, head: Head, kept: dict[str, Any]) -> list[str]:
    task = TASKS.get(head.name, "image-feature-extraction" if family.data == "images" else "feature-extraction")
    return [
        "---",
        *(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=100).splitlines() if kept else []),
        "library_name: transformers",
        f"pipeline_tag: {task}",
        "tags:",
        *[f"- {tag}" for tag in (family.name, "lemon", "model-growth")],
        "---",
        "",
    ]


def _history(ancestor: Ancestor) -> str:
    by_kind = {"train": _trained, "expand": _expanded, "reshard": _rewritten, "export": _rewritten}
    describe = by_kind.get(ancestor.kind, _foreign)
    return f"**{ancestor.name}**: {describe(ancestor)}."


def _trained(ancestor: Ancestor) -> str:
    facts = ancestor.stage.training if ancestor.stage else None
    batch = f" of {facts.settings.batch} samples, {facts.settings.precision}" if facts else ""
    origin = (ancestor.manifest.get("provenance") or {}).get("origin") or (facts.origin if facts else None)
    begin = "from what came before" if origin else "from scratch"
    count = f"{facts.parameters:,} parameters " if facts else ""
    loss = f"; evaluation loss {ancestor.evaluations[-1].loss:.4f}" if ancestor.evaluations else ""
    return f"{count}trained {begin} for {ancestor.last_step:,} steps{batch}{loss}"


def _expanded(ancestor: Ancestor) -> str:
    manifest = ancestor.manifest
    changes = [
        f"{name} {before:,} -> {after:,}"
        for name, (before, after) in ancestor.plan.get("sizes", {}).items()
        if before != after
    ]
    sizes = f" ({', '.join(changes)})" if changes else ""
    words = {"grow": "grown", "asymmetric": "kept on the source's entries"}
    moments = words.get(str(manifest.get("optimizer_state")), "started afresh")
    method = manifest.get("method", "unknown")
    return f"expanded by method `{method}`{sizes}, optimizer state {moments}; {_verified(manifest)}"


def _verified(manifest: dict[str, Any]) -> str:
    """What the expansion measured: the relative difference of the outputs before and after, beside its gates."""
    verification = manifest.get("verification")
    if not verification:
        return "no verification is recorded"
    reasons = f" ({'; '.join(manifest['lossy'])})" if manifest.get("lossy") else ""
    verdict = "verified lossless" if verification["lossless"] else f"lossy, as declared{reasons}"
    return f"{verdict}: {measurement_in_words(verification)}"


def _rewritten(ancestor: Ancestor) -> str:
    return f"rewritten in the layout '{ancestor.manifest.get('layout')}', no weight changed"


def _foreign(ancestor: Ancestor) -> str:
    there = "made elsewhere" if ancestor.path.exists() else "no longer where it was"
    return f"{there}; how it was made, and what that cost, is unknown"


def _ledger(ancestors: list[Ancestor]) -> list[str]:
    """FLOPs by stage and kind as exact integers, and their sum, which the checkpoint itself knows too."""
    rows: list[tuple[str, str, Amounts | None]] = [
        (ancestor.name, kind, spent) for ancestor in ancestors for kind, spent in (ancestor.spent or {}).items()
    ]
    rows += [(ancestor.name, "not recorded", None) for ancestor in ancestors if ancestor.spent is None]
    total = (ancestors[-1].manifest.get("provenance") or {}).get("flops", "unknown")
    listed = sum(spent.flops for *_, spent in rows if spent is not None)
    if isinstance(total, int) and total > listed:
        rows.append(("before", "not itemised here", Amounts(flops=total - listed)))
    body = [f"| {name} | {kind} | {_amounts(spent)} |" for name, kind, spent in rows]
    return [
        "| stage | kind | samples | tokens | FLOPs |",
        "|---|---|---:|---:|---:|",
        *body,
        f"| **everything** | | | | **{f'{total:,}' if isinstance(total, int) else total}** |",
    ]


def _amounts(spent: Amounts | None) -> str:
    """Samples, tokens and FLOPs, as cells of a table."""
    if spent is None:
        return " |  | unknown"
    samples, tokens = (f"{amount:,}" if amount else "" for amount in (spent.samples, spent.tokens))
    return f"{samples} | {tokens} | {spent.flops:,}"


def _loading(name: str, family: Family, config: PretrainedConfig, tokenizer: bool) -> list[str]:
    """A snippet that runs as it stands, beside the folder."""
    head = family.head(config)
    options = "".join(f", {key}={value}" for key, value in head.options(config).items())
    known = hasattr(transformers, head.class_name)
    loader = head.class_name if known else AUTO.get(head.name, "AutoModel")
    code = [
        f"from transformers import {loader}{', AutoTokenizer' if tokenizer else ''}",
        "",
        f'model = {loader}.from_pretrained("{name}"{options})',
    ]
    if tokenizer:
        code.append(f'tokenizer = AutoTokenizer.from_pretrained("{name}")')
    registered_here = (
        f"The family `{family.name}` is not one of `transformers`: install this project, whose `pipeline.models` "
        "registers it."
    )
    note = [] if known else [registered_here, ""]
    return [
        *note,
        "```python",
        *([] if known else [f"import pipeline.models  # registers '{family.name}'"]),
        *code,
        "```",
    ]


def _inputs(data: dict[str, Any]) -> list[str]:
    """What the model was trained on, sample by sample."""
    if data.get("kind") == "text":
        return [f"It was trained on blocks of {data['block']} tokens: `[CLS]`, text, `[SEP]`.", ""]
    if data.get("kind") == "images":
        mean, std = (", ".join(f"{value:.6g}" for value in data[key]) for key in ("mean", "std"))
        size = f"{data['channels']} x {data['size']} x {data['size']}"
        normalised = f"less the mean ({mean}) and divided by the deviation ({std})"
        return [f"It was trained on images of {size} pixels from 0 to 1, {normalised}.", ""]
    return []

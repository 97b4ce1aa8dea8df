"""What an expansion will do, before it is done: for people to read, and as data. No tensor is read."""

from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from transformers import PretrainedConfig

from pipeline import models
from pipeline.accounting.flops import cost
from pipeline.expansion.expand import ExpansionPlan, words
from pipeline.growth import conditions, optimizer_state
from pipeline.growth.execute import METHODS
from pipeline.growth.maps import MEAN, ZERO, IndexMap, Map, Maps
from pipeline.models.architecture import Architecture
from pipeline.records.processes import WORKERS

GIB = 2**30
LONGEST = 2048
"""Tokens of the training sample whose FLOPs are shown, where rotary positions set no limit that means anything."""
LIBRARIES = 400 * 2**20
"""Anonymous memory of a process that has imported torch, transformers and deepspeed, with some room."""
WRITER = 256 * 2**20
"""Anonymous memory of a writing process: a handful of windows, and what the allocator grow_optimizer_state of them."""


def preview(expansion: ExpansionPlan) -> dict:
    """Everything `lemon plan` prints and saves."""
    architectures = models.architecture_of(expansion.small), models.architecture_of(expansion.large)
    return {
        **expansion.growth.as_json(),
        "source": str(expansion.source),
        "family": architectures[0].family,
        "format": expansion.layout.as_json(),
        "parameters": [architecture.parameters for architecture in architectures],
        "flops": [
            _flops(architecture, config)
            for architecture, config in zip(architectures, (expansion.small, expansion.large), strict=True)
        ],
        "conditions": conditions.holding(*architectures, expansion.growth.config_change, expansion.growth.moved),
        "optimizer_state": optimizer_state.refusals(expansion.growth, set(expansion.state.slots)) or ["can grow"],
        "needs": needs(expansion),
    }


def _flops(architecture: Architecture, config: PretrainedConfig) -> dict:
    positions = _positions(config)
    return {"positions": positions, **asdict(cost(architecture, positions))}


def _positions(config: PretrainedConfig) -> dict[str, int]:
    """How many tokens, patches, … a training sample has: text fills the model's positions, up to LONGEST."""
    family = models.of_config(config)
    length = min(getattr(config, "max_position_embeddings", LONGEST) - family.reserved, LONGEST)
    return family.positions(config, {"block": length, "scored": length})


def needs(expansion: ExpansionPlan) -> dict[str, int]:
    """Bytes that the expansion takes. disk: the result; nothing is put aside. memory: what Python and its libraries hold, and
    what is larger: for every writing process windows and a source tensor (whose mean a window may need), or four times the
    largest tensor in float32 for the verification, which reads it in float64."""
    small, large = models.architecture_of(expansion.small), models.architecture_of(expansion.large)
    count, largest, source = (
        large.parameters,
        *(max(_size(architecture.shape(row)) for row in architecture.rows()) for architecture in (large, small)),
    )
    writers = min(
        WORKERS, {"huggingface": 1, "universal": WORKERS, "zero": expansion.layout.world_size}[expansion.layout.name]
    )
    width = {"float32": 4, "bfloat16": 2, "float16": 2}[expansion.layout.dtype]
    native = 12 * count + (0 if expansion.layout.zero_stage == 3 else (2 if expansion.layout.bf16 else 4) * count)
    disk = {"huggingface": width * count, "universal": 12 * count, "zero": native}[expansion.layout.name]
    return {"disk": disk, "memory": LIBRARIES + max(writers * (WRITER + 4 * source), 16 * largest)}


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def show(expansion: ExpansionPlan, content: dict, console: Console) -> None:
    """Print the plan."""
    before, after = content["parameters"]
    options = expansion.growth.options
    console.print(
        f"[bold]{expansion.source}[/bold] ({content['family']}) by method '{options.method}': {words(expansion.growth)}",
        highlight=False,
    )
    console.print(_spaces(expansion))
    console.print(_layers(expansion), highlight=False)
    console.print(_rows(expansion))
    for key, value in expansion.growth.config_change.items():
        console.print(f"config       {key}: {getattr(expansion.small, key):.6g} -> {value:.6g}", highlight=False)
    forward = [each["forward"] + each["backward"] for each in content["flops"]]
    tokens = content["flops"][1]["positions"]["token"]
    console.print(f"parameters   {before:,} -> {after:,}  ({after / before:.2f}x)", highlight=False)
    console.print(
        f"FLOPs        {forward[0]:.4g} -> {forward[1]:.4g} per training sample of {tokens} positions  ({forward[1] / forward[0]:.2f}x)",
        highlight=False,
    )
    for line in content["conditions"]:
        console.print(f"condition    {line}", highlight=False)
    console.print(f"optimizer    {'; '.join(content['optimizer_state'])}", highlight=False)
    console.print(
        f"result       {'lossless, and held to the gates' if expansion.growth.lossless else 'LOSSY: ' + '; '.join(expansion.growth.lossy)}",
        highlight=False,
    )
    wanted = content["needs"]
    console.print(
        f"needs        {wanted['disk'] / GIB:.2f} GiB of disk, {wanted['memory'] / GIB:.2f} GiB of memory",
        highlight=False,
    )


def _spaces(expansion: ExpansionPlan) -> Table:
    """How each space that grows is held and read."""
    architectures = models.architecture_of(expansion.small), models.architecture_of(expansion.large)
    maps: Maps = METHODS[expansion.growth.options.method].maps(*architectures, expansion.growth.options.seed)[""]
    sheet = Table("space", "kind", "before", "after", "held as (E)", "read as (R)", box=None, pad_edge=False)
    for name, space in architectures[1].spaces.items():
        if space.size != architectures[0].spaces[name].size:
            chosen = maps[name]
            sheet.add_row(
                name,
                space.kind,
                str(architectures[0].spaces[name].size),
                str(space.size),
                _held(chosen.writes, chosen.appended),
                _read(chosen.reads),
            )
    return sheet


def _held(chosen: Map, appended: bool) -> str:
    if not isinstance(chosen, IndexMap):
        return "interpolated"
    zeros, means = int((chosen.index == ZERO).sum()), int((chosen.index == MEAN).sum())
    copied = len(chosen.index) - zeros - means
    rest = (
        f" + {zeros} fresh"
        if appended
        else f" + {zeros} zeros"
        if zeros
        else f" + {means} times the mean"
        if means
        else ""
    )
    return f"{copied / chosen.source:.4g} copies{rest}"


def _read(chosen: Map) -> str:
    if not isinstance(chosen, IndexMap):
        return "interpolated"
    weights = sorted({round(weight, 4) for weight in chosen.weight[chosen.index >= 0].tolist()})
    return "weights " + ", ".join(f"{weight:.4g}" for weight in weights[:3]) + (", …" if len(weights) > 3 else "")


def _layers(expansion: ExpansionPlan) -> str:
    """Which source layer each target layer comes from; + marks a new one."""
    return "layers       " + " ".join(
        ",".join(str(term.layer) for term in layer.terms) + ("+" if layer.new else "")
        for layer in expansion.growth.layers
    )


def _rows(expansion: ExpansionPlan) -> Table:
    """The tensors, layers of one kind in one line."""
    architecture = models.architecture_of(expansion.large)
    templates = {row.name: row.template for row in architecture.rows()}
    groups: dict[tuple, list] = {}
    for row in expansion.growth.rows:
        kind = "fresh" if row.fresh else "grown" if row.sources else row.note
        groups.setdefault((templates[row.target], kind), []).append(row)
    sheet = Table("tensor", "shape", "count", "noise", "note", box=None, pad_edge=False)
    for (template, kind), rows in groups.items():
        noise = "yes" if rows[0].noise else ""
        sheet.add_row(
            template, "x".join(map(str, rows[0].shape)), str(len(rows)), noise, "" if kind == "grown" else kind
        )
    return sheet

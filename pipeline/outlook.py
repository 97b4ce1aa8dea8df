"""What an expansion will do, before it is done: for people to read, and as data. No tensor is read."""

from dataclasses import asdict

from rich.console import Console
from rich.table import Table as Sheet
from transformers import PretrainedConfig

from pipeline import models
from pipeline.axes import Table
from pipeline.expand import Job, words
from pipeline.flops import cost
from pipeline.growth import conditions, moments
from pipeline.growth.engine import METHODS
from pipeline.growth.maps import MEAN, ZERO, IndexMap, Map, Maps
from pipeline.processes import WORKERS

GIB = 2**30
LONGEST = 2048
"""Tokens of the training sample whose FLOPs are shown, where rotary positions set no limit that means anything."""
LIBRARIES = 400 * 2**20
"""Anonymous memory of a process that has imported torch, transformers and deepspeed, with some room."""
WRITER = 256 * 2**20
"""Anonymous memory of a writing process: a handful of windows, and what the allocator keeps of them."""


def outlook(job: Job) -> dict:
    """Everything `lemon plan` prints and saves."""
    tables = models.table(job.small), models.table(job.large)
    return {
        **job.plan.as_json(), "source": str(job.source), "family": tables[0].family, "format": job.form.as_json(),
        "parameters": [table.parameters for table in tables],
        "flops": [_flops(table, config) for table, config in zip(tables, (job.small, job.large), strict=True)],
        "conditions": conditions.holding(*tables, job.plan.config_change, job.plan.moved),
        "optimizer_state": moments.refusals(job.plan, set(job.state.slots)) or ["can grow"],
        "needs": needs(job),
    }


def _flops(table: Table, config: PretrainedConfig) -> dict:
    positions = _positions(config)
    return {"positions": positions, **asdict(cost(table, positions))}


def _positions(config: PretrainedConfig) -> dict[str, int]:
    """How many tokens, patches, … a training sample has: text fills the model's positions, up to LONGEST."""
    family = models.of_config(config)
    length = min(getattr(config, "max_position_embeddings", LONGEST) - family.reserved, LONGEST)
    return family.positions(config, {"block": length, "scored": length})


def needs(job: Job) -> dict[str, int]:
    """Bytes that the expansion takes. disk: the result; nothing is put aside. memory: what Python and its libraries hold, and
    what is larger: for every writing process windows and a source tensor (whose mean a window may need), or four times the
    largest tensor in float32 for the verification, which reads it in float64."""
    small, large = models.table(job.small), models.table(job.large)
    count, largest, source = large.parameters, *(max(_size(table.shape(row)) for row in table.rows()) for table in (large, small))
    writers = min(WORKERS, {"huggingface": 1, "universal": WORKERS, "zero": job.form.world_size}[job.form.layout])
    width = {"float32": 4, "bfloat16": 2, "float16": 2}[job.form.dtype]
    native = 12 * count + (0 if job.form.zero_stage == 3 else (2 if job.form.bf16 else 4) * count)
    disk = {"huggingface": width * count, "universal": 12 * count, "zero": native}[job.form.layout]
    return {"disk": disk, "memory": LIBRARIES + max(writers * (WRITER + 4 * source), 16 * largest)}


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def show(job: Job, content: dict, console: Console) -> None:
    """Print the plan."""
    before, after = content["parameters"]
    options = job.plan.options
    console.print(f"[bold]{job.source}[/bold] ({content['family']}) by method '{options.method}': {words(job.plan)}", highlight=False)
    console.print(_spaces(job))
    console.print(_layers(job), highlight=False)
    console.print(_rows(job))
    for key, value in job.plan.config_change.items():
        console.print(f"config       {key}: {getattr(job.small, key):.6g} -> {value:.6g}", highlight=False)
    forward = [each["forward"] + each["backward"] for each in content["flops"]]
    tokens = content["flops"][1]["positions"]["token"]
    console.print(f"parameters   {before:,} -> {after:,}  ({after / before:.2f}x)", highlight=False)
    console.print(f"FLOPs        {forward[0]:.4g} -> {forward[1]:.4g} per training sample of {tokens} positions  ({forward[1] / forward[0]:.2f}x)", highlight=False)
    for line in content["conditions"]:
        console.print(f"condition    {line}", highlight=False)
    console.print(f"optimizer    {'; '.join(content['optimizer_state'])}", highlight=False)
    console.print(f"result       {'lossless, and held to the gates' if job.plan.lossless else 'LOSSY: ' + '; '.join(job.plan.lossy)}", highlight=False)
    wanted = content["needs"]
    console.print(f"needs        {wanted['disk'] / GIB:.2f} GiB of disk, {wanted['memory'] / GIB:.2f} GiB of memory", highlight=False)


def _spaces(job: Job) -> Sheet:
    """How each space that grows is held and read."""
    tables = models.table(job.small), models.table(job.large)
    maps: Maps = METHODS[job.plan.options.method].maps(*tables, job.plan.options.seed)[""]
    sheet = Sheet("space", "kind", "before", "after", "held as (E)", "read as (R)", box=None, pad_edge=False)
    for name, space in tables[1].spaces.items():
        if space.size != tables[0].spaces[name].size:
            chosen = maps[name]
            sheet.add_row(name, space.kind, str(tables[0].spaces[name].size), str(space.size), _held(chosen.writes, chosen.appended), _read(chosen.reads))
    return sheet


def _held(chosen: Map, appended: bool) -> str:
    if not isinstance(chosen, IndexMap):
        return "interpolated"
    zeros, means = int((chosen.index == ZERO).sum()), int((chosen.index == MEAN).sum())
    copied = len(chosen.index) - zeros - means
    rest = f" + {zeros} fresh" if appended else f" + {zeros} zeros" if zeros else f" + {means} times the mean" if means else ""
    return f"{copied / chosen.source:.4g} copies{rest}"


def _read(chosen: Map) -> str:
    if not isinstance(chosen, IndexMap):
        return "interpolated"
    weights = sorted({round(weight, 4) for weight in chosen.weight[chosen.index >= 0].tolist()})
    return "weights " + ", ".join(f"{weight:.4g}" for weight in weights[:3]) + (", …" if len(weights) > 3 else "")


def _layers(job: Job) -> str:
    """Which source layer each target layer comes from; + marks a new one."""
    return "layers       " + " ".join(",".join(str(term.layer) for term in layer.terms) + ("+" if layer.new else "") for layer in job.plan.layers)


def _rows(job: Job) -> Sheet:
    """The tensors, layers of one kind in one line."""
    table = models.table(job.large)
    templates = {row.name: row.template for row in table.rows()}
    groups: dict[tuple, list] = {}
    for row in job.plan.rows:
        kind = "fresh" if row.fresh else "grown" if row.sources else row.note
        groups.setdefault((templates[row.target], kind), []).append(row)
    sheet = Sheet("tensor", "shape", "count", "noise", "note", box=None, pad_edge=False)
    for (template, kind), rows in groups.items():
        noise = "yes" if rows[0].noise else ""
        sheet.add_row(template, "x".join(map(str, rows[0].shape)), str(len(rows)), noise, "" if kind == "grown" else kind)
    return sheet

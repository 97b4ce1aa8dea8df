"""What an expansion will do, before it is done: for people to read, and as data. No tensor is read."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors.torch import save
from transformers import PretrainedConfig

from pipeline import models
from pipeline.accounting.flops import cost
from pipeline.checkpoints.serialization.amounts import amount
from pipeline.errors import UserError, writing_to
from pipeline.expansion import dense
from pipeline.expansion.expand import size_changes
from pipeline.expansion.fit_preview import fit_content, fit_lines
from pipeline.expansion.planning import ExpansionPlan
from pipeline.growth import conditions, new_entries, optimizer_state, plan_file
from pipeline.growth.maps import MEAN, ZERO, IndexMap, Map
from pipeline.growth.plan import GrowthPlan, TensorPlan
from pipeline.models.architecture import Architecture
from pipeline.models.optimizer_groups import state_numbers
from pipeline.records.processes import WORKERS
from pipeline.records.run_folder import write_json

TENSORS = ".safetensors"
LONGEST = 2048
"""Tokens of the training sample whose FLOPs are shown, where rotary positions set no limit that means anything."""
LIBRARIES = 400 * 2**20
"""Anonymous memory of a process that has imported torch, transformers and deepspeed, with some room."""
WRITER = 256 * 2**20
"""Anonymous memory of a writing process: a handful of windows, and what the allocator keeps of them."""


@dataclass(frozen=True)
class Preview:
    """An expansion that has been planned, and everything that `lemon plan` says of it."""

    expansion: ExpansionPlan
    content: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return self.content

    def save(self, path: Path) -> None:
        """Write it as JSON, and maps that are too large for it as safetensors beside it. Raises UserError."""
        with writing_to(path, "choose another --out"):
            place = Path(os.path.realpath(path))  # what is written takes the place of a file, not of a link to one
            if place.exists() and not place.is_file():
                raise UserError(f"{path}: exists and is no file; choose another --out")
            if place.suffix == TENSORS:
                raise UserError(
                    f"{path}: a plan is JSON, its larger maps are in such a file beside it; name a .json file"
                )
            tensors = plan_file.TensorStore()
            write_json(place, {**self.content, **plan_file.as_json(self.expansion.growth, tensors)})
            if tensors.stored:
                place.with_suffix(TENSORS).write_bytes(save(tensors.stored))

    def __repr__(self) -> str:
        growth, needs = self.expansion.growth, self.content["needs"]
        verdict = "lossless" if growth.lossless else f"lossy: {'; '.join(growth.lossy)}"
        return (
            f"Preview('{self.expansion.source}' by method '{growth.options.method}': {size_changes(growth)}; "
            f"{verdict}; {amount(needs['disk'])} of disk, {amount(needs['memory'])} of memory)"
        )


def preview(expansion: ExpansionPlan) -> Preview:
    """What an expansion will do, on which conditions, and what it needs."""
    return Preview(expansion, _content(expansion))


def _content(expansion: ExpansionPlan) -> dict[str, Any]:
    architectures = models.architecture_of(expansion.small), models.architecture_of(expansion.large)
    price = cost(architectures[1], _positions(expansion.large))
    return {
        **plan_file.as_json(expansion.growth),
        "source": str(expansion.source),
        "family": architectures[0].family,
        "layout": expansion.layout.as_json(),
        "parameters": [architecture.parameters for architecture in architectures],
        "flops": [
            _flops(architecture, config)
            for architecture, config in zip(architectures, (expansion.small, expansion.large), strict=True)
        ],
        "conditions": _conditions(expansion.growth, *architectures),
        "left_behind": list(expansion.state.left_behind),
        "optimizer_state": _optimizer_state(expansion),
        "needs": needs(expansion) | dense.needs(expansion.growth),
        "fit": fit_content(expansion, price),
    }


def _conditions(growth: GrowthPlan, small: Architecture, large: Architecture) -> list[str]:
    """What a growth that is exact rests on."""
    if not growth.lossless:
        return []
    return conditions.holding(small, large, growth.config_change, growth.moves_norm_affines)


def _optimizer_state(expansion: ExpansionPlan) -> list[str]:
    """Whether it can grow, or why it cannot; of one that is kept how much of it is new."""
    try:
        optimizer = expansion.state.optimizer()
    except UserError as error:
        return [str(error)]
    if expansion.moments == "asymmetric":
        return [_kept(expansion.growth)]
    return optimizer_state.refusals(expansion.growth, optimizer.slots, expansion.state.slots) or ["can grow"]


def _kept(growth: GrowthPlan) -> str:
    new, whole = new_entries.of_growth(growth, 0, None).count(growth.target), growth.target.parameters
    return f"is kept on the source's entries; {new:,} of {whole:,} are new and begin at zero"


def _flops(architecture: Architecture, config: PretrainedConfig) -> dict[str, Any]:
    positions = _positions(config)
    return {"positions": positions, **asdict(cost(architecture, positions))}


def _positions(config: PretrainedConfig) -> dict[str, int]:
    """How many tokens, patches, … a training sample has: text fills the model's positions, up to LONGEST."""
    family = models.of_config(config)
    length = min(getattr(config, "max_position_embeddings", LONGEST) - family.reserved, LONGEST)
    return family.positions(config, {"block": length, "scored": length})


def needs(expansion: ExpansionPlan) -> dict[str, int]:
    """Bytes that the expansion takes. disk: the result; nothing is put aside. memory: what Python and its libraries
    hold, dense maps, and what is larger: for every writing process windows and a source tensor (whose mean a window may
    need), or four times the largest tensor in float32 for the verification, which reads it in float64."""
    small, large = models.architecture_of(expansion.small), models.architecture_of(expansion.large)
    count, largest, source = (
        large.parameters,
        *(max(_size(architecture.shape(row)) for row in architecture.rows()) for architecture in (large, small)),
    )
    layout = expansion.layout.kind
    writers = layout.writers(count, expansion.layout, WORKERS)
    disk = layout.bytes_on_disk(count, state_numbers(large, expansion.optimizer), expansion.layout)
    maps = dense.bytes_held(expansion.growth)
    return {"disk": disk, "memory": LIBRARIES + maps + max(writers * (WRITER + 4 * source), 16 * largest)}


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def show(preview: Preview, console: Console) -> None:
    """Print the plan."""
    expansion, content = preview.expansion, preview.content
    growth = expansion.growth
    console.print(
        Text(str(expansion.source), "bold"),
        f"({content['family']}) by method '{growth.options.method}': {size_changes(growth)}",
        markup=False,
        highlight=False,
    )
    console.print(_spaces(expansion))
    console.print(_layers(expansion), markup=False, highlight=False)
    console.print(_tensors(expansion))
    for line in (*_config(expansion), *_costs(content), *_verdicts(expansion, content)):
        console.print(line, markup=False, highlight=False)


def _config(expansion: ExpansionPlan) -> list[str]:
    return [
        f"config       {key}: {getattr(expansion.small, key):.6g} -> {value:.6g}"
        for key, value in expansion.growth.config_change.items()
    ]


def _costs(content: dict[str, Any]) -> list[str]:
    before, after = content["parameters"]
    small, large = (each["forward"] + each["backward"] for each in content["flops"])
    tokens = content["flops"][1]["positions"]["token"]
    return [
        f"parameters   {before:,} -> {after:,}  ({after / before:.2f}x)",
        f"FLOPs        {small:.4g} -> {large:.4g} per training sample of {tokens} positions  ({large / small:.2f}x)",
    ]


def _verdicts(expansion: ExpansionPlan, content: dict[str, Any]) -> list[str]:
    growth, disk, memory = expansion.growth, content["needs"]["disk"], content["needs"]["memory"]
    lossless = "lossless, and held to the gates" if growth.lossless else f"LOSSY: {'; '.join(growth.lossy)}"
    return [
        *(f"source       {line}" for line in expansion.state.remarks()),
        *(f"condition    {line}" for line in content["conditions"]),
        *(fit_lines(content["fit"]) if content["fit"] else []),
        f"optimizer    {'; '.join(content['optimizer_state'])}",
        f"result       {lossless}",
        f"needs        {amount(disk)} of disk, {amount(memory)} of memory",
        *dense.lines(content["needs"]),
    ]


def _spaces(expansion: ExpansionPlan) -> Table:
    """How each space that grows is written and read."""
    growth = expansion.growth
    table = Table("space", "kind", "before", "after", "written as (E)", "read as (R)", box=None, pad_edge=False)
    for name, space in growth.target.spaces.items():
        before, space_map = growth.source.spaces[name].size, growth.maps[name]
        if space.size != before:
            written, read = _written(space_map.writes, space_map.appended), _read(space_map.reads)
            if any(name in spaces for spaces in growth.maps.overrides.values()):
                written = read = "differs from layer to layer"
            table.add_row(name, space.kind, str(before), str(space.size), written, read)
    return table


def _written(axis_map: Map, appended: bool) -> str:
    if not isinstance(axis_map, IndexMap):
        return "a dense matrix"
    zeros, means = int((axis_map.index == ZERO).sum()), int((axis_map.index == MEAN).sum())
    copied = len(axis_map.index) - zeros - means
    if appended:
        remainder = f" + {zeros} fresh"
    else:
        remainder = f" + {zeros} zeros" if zeros else f" + {means} times the mean" if means else ""
    return f"{copied / axis_map.source:.4g} copies{remainder}"


def _read(axis_map: Map) -> str:
    if not isinstance(axis_map, IndexMap):
        return "a dense matrix"
    weights = sorted({round(weight, 4) for weight in axis_map.weight[axis_map.index >= 0].tolist()})
    return "weights " + ", ".join(f"{weight:.4g}" for weight in weights[:3]) + (", …" if len(weights) > 3 else "")


def _layers(expansion: ExpansionPlan) -> str:
    """Which source layer each target layer comes from, stack by stack; + marks a new one."""
    lines = []
    for stack in expansion.growth.target.stacks:
        origins = [
            ",".join(str(term.layer) for term in origin.terms) + ("+" if origin.new else "")
            for origin in expansion.growth.layers[stack.name]
        ]
        lines.append(f"layers       {expansion.growth.target.stack_prefix(stack)}{' '.join(origins)}")
    return "\n".join(lines)


def _tensors(expansion: ExpansionPlan) -> Table:
    """The tensors, layers of one kind in one line."""
    groups: dict[tuple[str, str], list[TensorPlan]] = {}
    for tensor_plan in expansion.growth.tensors:
        kind = "fresh" if tensor_plan.fresh else "grown" if tensor_plan.grown else tensor_plan.note or ""
        groups.setdefault((tensor_plan.template, kind), []).append(tensor_plan)
    table = Table("tensor", "shape", "count", "noise", "note", box=None, pad_edge=False)
    for (template, kind), plans in groups.items():
        noise, shape = "yes" if plans[0].noise else "", "x".join(map(str, plans[0].shape))
        table.add_row(template, shape, str(len(plans)), noise, "" if kind == "grown" else kind)
    return table

"""What a checkpoint is: `lemon inspect DIR`. Every file is opened, and of a tensor's numbers only the first is read, to
learn its type; whether the numbers are those that were written says `whole.check`.
"""

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from pipeline import checkpoints, models
from pipeline.checkpoints import manifest
from pipeline.checkpoints.layouts import zero_format
from pipeline.checkpoints.state import LazyTensor, State
from pipeline.errors import UserError

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def inspect(path: Path, tensors: bool = False) -> dict:
    """Everything `lemon inspect` prints; `tensors` adds one record for each of them. Raises UserError."""
    folder = checkpoints.locate(path)
    state, model = checkpoints.raw(folder), described(folder)
    tied = model.pop("tied", {})
    files = [file for file in folder.rglob("*") if file.is_file()]
    facts = {
        "folder": str(folder),
        **layout_facts(folder),
        "model": model,
        **_sizes(state),
        "frozen": list(state.frozen),
        "tied": dict(state.aliases or tied),
        "buffers": list(state.buffers),
        "slots": {slot: len(entries) for slot, entries in state.slots.items() if entries},
        "steps": sorted(set(state.steps.values())),
        "groups": [_group(state, number) for number in range(len(state.groups))],
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "provenance": state.provenance,
        "manifest": _manifest(folder),
    }
    return facts | ({"every_tensor": _each(state)} if tensors else {})


def layout_facts(folder: Path) -> dict:
    """The layout and, of native ZeRO, stage, ranks and precision, as the files themselves say."""
    layout = checkpoints.detect_layout(folder)
    if layout != "zero":
        return {"layout": layout}
    if ranks := zero_format.optimizer_files(folder):
        stage = int(zero_format.open_file(ranks[0])["optimizer_state_dict"]["zero_stage"])
        return {
            "layout": layout,
            "zero_stage": stage,
            "world_size": len(ranks),
            "bf16": ranks[0].name.startswith("bf16_"),
        }
    model = zero_format.open_file(folder / zero_format.model_file(0))
    return {
        "layout": layout,
        "zero_stage": 0,
        "world_size": model["dp_world_size"],
        "bf16": any(held.dtype == torch.bfloat16 for held in model["module"].values()),
    }


def described(folder: Path) -> dict:
    """The model's family and sizes, where a config says them; else why they are unknown."""
    if not (folder / checkpoints.CONFIG).exists():
        return {"family": None, "unknown": f"no {checkpoints.CONFIG} in the folder"}
    try:
        family, config = models.read_config(folder / checkpoints.CONFIG)
    except UserError as error:
        return {"family": None, "unknown": str(error)}
    architecture = models.architecture_of(config)
    return {
        "family": family.name,
        "architecture": family.head(config).class_name,
        "sizes": architecture.sizes(),
        "parameters": architecture.parameters,
        "tied": architecture.aliases,
    }


def _sizes(state: State) -> dict:
    name, entry = max(state.tensors.items(), key=lambda item: math.prod(item[1].shape))
    types = Counter(_type(entry) for entry in state.tensors.values())
    return {
        "tensors": len(state.tensors),
        "parameters": _count(state, state.tensors),
        "dtypes": dict(types),
        "largest": {"name": name, "shape": list(entry.shape)},
    }


def _count(state: State, names: Iterable[str]) -> int:
    return sum(math.prod(state.tensors[name].shape) for name in names)


def _type(entry: LazyTensor) -> str:
    return str(entry.part(0, 1).dtype).removeprefix("torch.")


def _group(state: State, number: int) -> dict:
    names = state.groups[number].names
    return {"tensors": len(names), "parameters": _count(state, names), "hyper": state.groups[number].hyper}


def _each(state: State) -> list[dict]:
    groups = {name: number for number, group in enumerate(state.groups) for name in group.names} | dict.fromkeys(
        state.frozen, "frozen"
    )
    return [
        {"name": name, "shape": list(entry.shape), "dtype": _type(entry), "group": groups.get(name)}
        for name, entry in state.tensors.items()
    ]


def _manifest(folder: Path) -> dict | None:
    """What the manifest says but for hashes and provenance; None: the checkpoint is foreign."""
    if not (folder / manifest.NAME).exists():
        return None
    return {key: value for key, value in manifest.read(folder).items() if key not in ("files", "provenance")}


def show(facts: dict, console: Console) -> None:
    """Print what `inspect` found."""
    sheet = Table.grid(padding=(0, 2))
    for label, text in _lines(facts):
        sheet.add_row(f"[bold]{label}[/bold]", text)
    console.print(sheet, highlight=False)
    if facts["groups"]:
        groups = Table("group", "tensors", "parameters", "hyper-parameters", box=None, pad_edge=False)
        for number, group in enumerate(facts["groups"]):
            groups.add_row(str(number), str(group["tensors"]), f"{group['parameters']:,}", _hyper(group["hyper"]))
        console.print(groups, highlight=False)
    if "every_tensor" in facts:
        each = Table("tensor", "shape", "dtype", "group", box=None, pad_edge=False)
        for row in facts["every_tensor"]:
            each.add_row(
                row["name"], _shape(row["shape"]), row["dtype"], "" if row["group"] is None else str(row["group"])
            )
        console.print(each, highlight=False)


def _hyper(values: dict) -> str:
    """Without what is switched off."""
    kept = {key: value for key, value in values.items() if value is not None and value is not False}
    return ", ".join(
        f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in kept.items()
    )


def _lines(facts: dict) -> list[tuple[str, str]]:
    model, held, largest = facts["model"], facts["manifest"], facts["largest"]
    sizes = ", ".join(f"{name} {size}" for name, size in model.get("sizes", {}).items())
    beside = [
        f"{len(facts[kind])} {kind}{_first(facts[kind])}" for kind in ("frozen", "tied", "buffers") if facts[kind]
    ]
    steps = ", ".join(f"{step:g}" for step in facts["steps"][:5]) + (", …" if len(facts["steps"]) > 5 else "")
    slots = ", ".join(f"{slot} of {count}" for slot, count in facts["slots"].items())
    spent, origin = facts["provenance"].get("flops", "unknown"), facts["provenance"].get("origin")
    return [
        ("checkpoint", facts["folder"]),
        ("layout", words(facts)),
        (
            "model",
            f"{model['family']} ({model['architecture']}): {sizes}"
            if model["family"]
            else f"unknown: {model['unknown']}",
        ),
        ("parameters", f"{facts['parameters']:,} in {facts['tensors']} tensors of {' and '.join(facts['dtypes'])}"),
        ("largest", f"'{largest['name']}', {_shape(largest['shape'])}"),
        *([("besides", "; ".join(beside))] if beside else []),
        ("optimizer", f"{slots} tensors, step {steps}" if slots else "no state"),
        ("on disk", f"{amount(facts['bytes'])} in {plural(facts['files'], 'file')}"),
        ("spent", f"{spent:,} FLOPs" if isinstance(spent, int) else f"{spent} FLOPs"),
        *([("origin", str(origin))] if origin else []),
        (
            "manifest",
            f"written by '{held.get('kind', 'an unnamed tool')}' at step {held.get('step', 'unknown')}"
            if held
            else "none: a foreign checkpoint",
        ),
    ]


def words(facts: dict) -> str:
    """The layout, in words."""
    if facts["layout"] != "zero":
        return {"universal": "universal (DeepSpeed), any number of ranks", "huggingface": "Hugging Face"}[
            facts["layout"]
        ]
    return f"native ZeRO stage {facts['zero_stage']}, {plural(facts['world_size'], 'rank')}{', trained in bf16' if facts['bf16'] else ''}"


def _first(names: list | dict) -> str:
    return f" ('{next(iter(names))}'{', …' if len(names) > 1 else ''})"


def _shape(shape: list[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def amount(size: int) -> str:
    """Bytes in the unit that suits them."""
    power = min(len(UNITS) - 1, max(0, size.bit_length() - 1) // 10)
    return f"{size} bytes" if not power else f"{size / 1024**power:.2f} {UNITS[power]}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"

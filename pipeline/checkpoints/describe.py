"""What a checkpoint is: `lemon inspect DIR`. Every file is opened, and of a tensor's numbers only the first is read, to
learn its type; whether the numbers are those that were written says `integrity.check`.

Neither DeepSpeed nor transformers is imported: importing them takes ten times as long as the rest. The model is
described by its config.json's own words."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline import checkpoints
from pipeline.checkpoints import manifest, sidecars, tying
from pipeline.checkpoints.layouts import layout_named, require_layout
from pipeline.checkpoints.serialization.amounts import amount
from pipeline.checkpoints.state import State
from pipeline.checkpoints.tensors import LazyTensor
from pipeline.errors import UserError
from pipeline.records.run_folder import read_json

Facts = dict[str, Any]
SIZE_KEYS = (
    *("hidden_size", "n_embd", "dim", "num_hidden_layers", "n_layer", "n_layers", "num_attention_heads", "n_head"),
    *("n_heads", "num_key_value_heads", "hidden_dim"),
    *("head_dim", "intermediate_size", "n_inner", "mlp_ratio", "vocab_size", "max_position_embeddings", "n_positions"),
    *("image_size", "patch_size"),
)
"""What models of transformers call their sizes, in the order in which they are shown."""

COUNTERS = ("skipped_steps", "global_samples")
"""Of what DeepSpeed's engine counts, that of which nothing else tells."""
SHOWN = 8
"""Names in one line."""
UNTIED_BY_DEFAULT = ("llama", "mistral", "phi3", "qwen2", "qwen3")
"""Models of transformers whose config ties nothing where it says nothing."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight")
TIED = {
    "lm_head.weight": EMBEDDINGS,
    "decoder.weight": EMBEDDINGS,
    "vocab_projector.weight": EMBEDDINGS,
    "cls.predictions.decoder.bias": ("cls.predictions.bias",),
    "lm_head.decoder.bias": ("lm_head.bias",),
}
"""What tied names end with, and their owners: of any model of transformers, supported or not, without building it."""


@dataclass(frozen=True)
class Description:
    """What a checkpoint is, as data."""

    facts: Facts

    @property
    def folder(self) -> Path:
        """The tag folder."""
        return Path(self.facts["folder"])

    @property
    def parameters(self) -> int:
        """How many numbers the model has, tied ones once."""
        return int(self.facts["parameters"])

    def as_json(self) -> Facts:
        return self.facts

    def __repr__(self) -> str:
        layout, model = (
            layout_named(self.facts["layout"]).words(self.facts),
            self.facts["model"]["family"] or "unknown model",
        )
        size = f"{self.parameters:,} parameters"
        return f"Description('{self.folder}': {layout}, {model}, {size}, step {self.facts['step']})"


def describe(path: Path, tensors: bool = False) -> Description:
    """What the checkpoint is; `tensors` adds one record for each of them. Raises UserError."""
    return Description(_facts(path, tensors))


def _facts(path: Path, tensors: bool) -> Facts:
    folder = checkpoints.locate(path)
    state, content, beside = checkpoints.raw(folder), manifest.read_if_any(folder), checkpoints.Sidecars.of(folder)
    files = [file for file in folder.rglob("*") if file.is_file()]
    facts = {
        "folder": str(folder),
        **layout_facts(folder),
        "model": {**model_facts(folder), "parameters": _count(state, state.tensors)},
        **_sizes(state),
        "frozen": list(state.frozen),
        "tied": dict(state.aliases),
        "tied_but_different": _tied_but_different(folder, state),
        "buffers": list(state.buffers),
        "counters": _counters(state),
        "keeps": state.script_keys(),
        "beside": list(beside.kept),
        "not_read": [line for line in (*state.unread, beside.remark, checkpoints.below(folder)) if line],
        "slots": {slot: len(entries) for slot, entries in state.slots.items() if entries},
        "scalars": {key: len(values) for key, values in state.scalars.items()},
        "step": state.step,
        "steps": sorted(set(state.steps.values())),
        "groups": [_group(state, number) for number in range(len(state.groups))],
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "provenance": state.provenance,
        "manifest": content.facts() if content else None,
    }
    return facts | ({"every_tensor": _facts_of_tensors(state)} if tensors else {})


def layout_facts(folder: Path) -> Facts:
    """The layout and, of native ZeRO, stage, ranks and precision, as the files themselves say."""
    layout = require_layout(folder)
    return {"layout": layout.name, **layout.facts(folder)}


def model_facts(folder: Path) -> Facts:
    """The model's family, class and sizes as config.json names them; else why they are unknown."""
    path = (sidecars.above(folder) or folder) / checkpoints.CONFIG
    if not path.exists():
        return {"family": None, "unknown": f"no {checkpoints.CONFIG} in the folder"}
    try:
        config = read_json(path)
    except UserError as error:
        return {"family": None, "unknown": str(error)}
    if not config.get("model_type"):
        return {"family": None, "unknown": f"{path}: names no model_type"}
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else None
    sizes = {key: config[key] for key in SIZE_KEYS if config.get(key) is not None}
    return {"family": config["model_type"], "architecture": named, "sizes": sizes}


def _tied_but_different(folder: Path, state: State) -> dict[str, str]:
    """Tied names, and the owners from which they are apart though the config says that they are tied."""
    try:
        config = read_json(folder / checkpoints.CONFIG)
    except UserError:
        return {}
    if not config.get(tying.KEY, config.get("model_type") not in UNTIED_BY_DEFAULT):
        return {}
    pairs = (
        (alias, owner)
        for alias in state.tensors
        for owner in state.tensors
        if any(alias.endswith(end) and owner.endswith(TIED[end]) for end in TIED)
    )
    return dict(tying.apart(state, pairs))


def _counters(state: State) -> Facts:
    """What the engine counts beside steps, and the factor by which it scales the loss."""
    counted = {key: state.engine[key] for key in COUNTERS if state.engine.get(key) is not None}
    scale = getattr(state.scaling.get("loss_scaler"), "cur_scale", None)
    return counted | ({"loss_scale": scale} if scale is not None else {})


def _sizes(state: State) -> Facts:
    name, largest = max(state.tensors.items(), key=lambda item: item[1].numel)
    types = Counter(_dtype(tensor) for tensor in state.tensors.values())
    return {
        "tensors": len(state.tensors),
        "parameters": _count(state, state.tensors),
        "dtypes": dict(types),
        "largest": {"name": name, "shape": list(largest.shape)},
    }


def _count(state: State, names: Iterable[str]) -> int:
    return sum(state.tensors[name].numel for name in names)


def _dtype(tensor: LazyTensor) -> str:
    return str(tensor.read(0, 1).dtype).removeprefix("torch.")


def _group(state: State, number: int) -> Facts:
    names = state.groups[number].names
    return {"tensors": len(names), "parameters": _count(state, names), "hyper": state.groups[number].hyper}


def _facts_of_tensors(state: State) -> list[Facts]:
    groups: dict[str, int | str] = {name: n for n, group in enumerate(state.groups) for name in group.names}
    groups |= dict.fromkeys(state.frozen, "frozen")
    return [
        {"name": name, "shape": list(tensor.shape), "dtype": _dtype(tensor), "group": groups.get(name)}
        for name, tensor in state.tensors.items()
    ]


def show(description: Description, console: Console) -> None:
    """Print what a checkpoint is."""
    facts = description.facts
    sheet = Table.grid(padding=(0, 2))
    for label, text in _lines(facts):
        sheet.add_row(Text(label, "bold"), Text(text))  # names may look like markup
    console.print(sheet, highlight=False)
    if facts["groups"]:
        groups = Table("group", "tensors", "parameters", "hyper-parameters", box=None, pad_edge=False)
        for number, group in enumerate(facts["groups"]):
            hyper = Text(_hyper(group["hyper"]))
            groups.add_row(str(number), str(group["tensors"]), f"{group['parameters']:,}", hyper)
        console.print(groups, highlight=False)
    if "every_tensor" in facts:
        each = Table("tensor", "shape", "dtype", "group", box=None, pad_edge=False)
        for row in facts["every_tensor"]:
            group_name = "" if row["group"] is None else str(row["group"])
            each.add_row(Text(row["name"]), _shape(row["shape"]), row["dtype"], group_name)
        console.print(each, highlight=False)


def _hyper(values: Facts) -> str:
    """Without what is switched off."""
    kept = {key: value for key, value in values.items() if value is not None and value is not False}
    return ", ".join(
        f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in kept.items()
    )


def _lines(facts: Facts) -> list[tuple[str, str]]:
    model, content, largest, counters = (facts[key] for key in ("model", "manifest", "largest", "counters"))
    kinds = [kind for kind in ("frozen", "tied", "buffers") if facts[kind]]
    besides = "; ".join(f"{len(facts[kind])} {kind}{_first(facts[kind])}" for kind in kinds)
    spent, origin = facts["provenance"].get("flops", "unknown"), facts["provenance"].get("origin")
    writer = f"written by '{content.get('kind', 'an unnamed tool')}' at step {content['step']}" if content else None
    return [
        ("checkpoint", facts["folder"]),
        ("layout", layout_named(facts["layout"]).words(facts)),
        ("model", _model(model)),
        ("parameters", f"{facts['parameters']:,} in {facts['tensors']} tensors of {' and '.join(facts['dtypes'])}"),
        ("largest", f"'{largest['name']}', {_shape(largest['shape'])}"),
        *([("besides", besides)] if besides else []),
        *([("engine", ", ".join(f"{key} {value}" for key, value in counters.items()))] if counters else []),
        *([("script", f"keeps {_listed(facts['keeps'])}")] if facts["keeps"] else []),
        *([("beside", _listed(facts["beside"]))] if facts["beside"] else []),
        *[
            ("beware", f"'{alias}' differs from '{owner}', to which {checkpoints.CONFIG} ties it: both count")
            for alias, owner in facts["tied_but_different"].items()
        ],
        *(("not read", line) for line in facts["not_read"]),
        ("optimizer", _optimizer(facts)),
        ("on disk", f"{amount(facts['bytes'])} in {plural(facts['files'], 'file')}"),
        ("spent", f"{spent:,} FLOPs" if isinstance(spent, int) else f"{spent} FLOPs"),
        *([("origin", str(origin))] if origin else []),
        ("manifest", writer or "none: a foreign checkpoint"),
    ]


def _model(model: Facts) -> str:
    if not model["family"]:
        return f"unknown: {model['unknown']}"
    sizes = ", ".join(f"{name} {size}" for name, size in model["sizes"].items())
    return f"{model['family']} ({model['architecture'] or 'no class named'}): {sizes}"


def _optimizer(facts: Facts) -> str:
    """Its slots, and the parameters' own steps; of an optimizer that keeps none, the checkpoint's."""
    kept = {**facts["slots"], **facts["scalars"]}
    if not kept:
        return "no state"
    slots = ", ".join(f"{slot} of {count}" for slot, count in kept.items())
    steps = facts["steps"] or [facts["step"]]
    listed = ", ".join(f"{step:g}" for step in steps[:5]) + (", …" if len(steps) > 5 else "")
    return f"{slots} tensors, step {listed}"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _first(names: list[str] | dict[str, str]) -> str:
    return f" ('{next(iter(names))}'{', …' if len(names) > 1 else ''})"


def _shape(shape: list[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"

"""A plan on disk: `plan.json` to read, and `plan.safetensors` beside it for what only a program reads.

An index map of few blocks is a line of words in the JSON (`["12 from 0", "8 means"]`), exact and readable; a map of
many blocks (chosen by data, or drawn) or a dense one is a float64 tensor in the safetensors file; so are the
coefficients of a sum of many terms (plan_terms.py). What a plan says of the two architectures is their sizes: who loads
it has their configs.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_as_bytes
from torch import Tensor

from pipeline.errors import UserError
from pipeline.growth import methods
from pipeline.growth.maps import MEAN, ZERO, DenseMap, IndexMap, Map, Maps, SpaceMap, copies
from pipeline.growth.method import ExpansionOptions, LayerOrigin
from pipeline.growth.plan import GrowthPlan, TensorPlan, build_plan
from pipeline.growth.plan_terms import TermReader, TermWriter
from pipeline.models.architecture import Architecture
from pipeline.records.formats import require_readable
from pipeline.records.run_folder import read_json, write_json

Json = dict[str, Any]
PLAN, TENSORS = "plan.json", "plan.safetensors"
FORMAT, SUMS, PLAIN = 3, 2, 1
"""Of plan.json: with fresh layers, with sums or blocks, with neither. Files without a format hold no maps: they are
made again by their method, which needed no source then."""
MOST_WORDS = 64
"""Blocks of an index map that are written out in the JSON."""
SIDES = ("writes", "reads", "gains", "query_null_space")
NO_PLAN = f"remove it and manifest.json to compare by {methods.DEFAULT.upper()}'s rules"


def save(plan: GrowthPlan, folder: Path) -> list[str]:
    """Write the plan into a folder. Returns the names of the files."""
    tensors = TensorStore()
    content = as_json(plan, tensors)
    write_json(folder / PLAN, content)
    if not tensors.stored:
        return [PLAN]
    (folder / TENSORS).write_bytes(tensors_as_bytes(tensors.stored))
    return [PLAN, TENSORS]


def digest(plan: GrowthPlan) -> str:
    """SHA-256 of all that would be saved."""
    tensors = TensorStore()
    content = hashlib.sha256(json.dumps(as_json(plan, tensors)).encode())
    content.update(tensors_as_bytes(tensors.stored))
    return content.hexdigest()


def load(
    folder: Path, source: Architecture, target: Architecture, init_std: float, way_out: str = NO_PLAN
) -> GrowthPlan:
    """The plan in a folder, of these two architectures. init_std: for a plan that was written before plans held it.
    way_out: what to do without it. Raises UserError for a file that is no plan, is newer than this version, or belongs
    to other models."""
    content = read_json(folder / PLAN)
    if "format" in content:
        require_readable(folder / PLAN, content["format"], FORMAT)
    try:
        if "format" not in content:
            return _recomputed(content, source, target, init_std)
        return _restored(content, source, target, folder / TENSORS)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / PLAN}: not a plan of an expansion ({error!r}); {way_out}") from error
    except UserError as error:
        raise UserError(f"{folder / PLAN}: {error}; {way_out}") from error


@dataclass(frozen=True)
class Head:
    """What a plan says without the models that it is of. config_change: the keys of the target's config."""

    options: ExpansionOptions
    config_change: tuple[str, ...]


def head(folder: Path) -> Head:
    """Of the plan in a folder. Raises UserError for a file that is no plan, or is newer than this version."""
    content = read_json(folder / PLAN)
    if "format" not in content:
        raise UserError(f"{folder / PLAN}: written before plans held their maps; expand its source again")
    require_readable(folder / PLAN, content["format"], FORMAT)
    try:
        method = dict(content["method"])
        return Head(_options(method.pop("name"), method, content["seed"]), tuple(content["config_change"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / PLAN}: not a plan of an expansion ({error!r}); expand its source again") from error


def _recomputed(content: Json, source: Architecture, target: Architecture, init_std: float) -> GrowthPlan:
    """A plan without a format, upgraded: its options held every parameter that any method had then."""
    recorded = dict(content["options"])
    name, seed = recorded.pop("method"), recorded.pop("seed", 0)
    known = methods.find(name).Options.model_fields
    if unknown := set(recorded) - {"depth", "placement", "noise"}:
        raise ValueError(f"unknown options {sorted(unknown)}")
    options = methods.parse(name, {key: value for key, value in recorded.items() if key in known}, seed)
    return build_plan(source, target, options, init_std)


def as_json(plan: GrowthPlan, tensors: "TensorStore | None" = None) -> Json:
    """The plan as data. tensors: takes the maps that are too large for JSON."""
    store = TensorStore() if tensors is None else tensors
    writer = TermWriter(store.tensor)
    content = {
        "format": PLAIN,
        "method": {"name": plan.options.method, **plan.options.options.model_dump()},
        "seed": plan.options.seed,
        "lossless": plan.lossless,
        "lossy": list(plan.lossy),
        "sizes": {name: list(sizes) for name, sizes in plan.sizes.items()},
        "config_change": plan.config_change,
        "moves_norm_affines": plan.moves_norm_affines,
        "noise": plan.noise,
        "init_std": plan.init_std,
        "layers": {
            stack: [
                {"terms": writer.terms(origin.terms), "new": origin.new, "cancels": origin.cancels}
                | ({"fresh": True} if origin.fresh else {})
                for origin in origins
            ]
            for stack, origins in plan.layers.items()
        },
        "maps": store.maps(plan.maps),
        "term_maps": {name: store.maps(maps) for name, maps in plan.term_maps.items()},
        "tensors": [_tensor_as_json(each, writer) for each in plan.tensors],
    }
    if writer.sums or any(each.blocks for each in plan.tensors):
        content |= {"format": SUMS, "sums": writer.sums}
    if any(origin.fresh for origins in plan.layers.values() for origin in origins):
        content |= {"format": FORMAT}
    return content


def _tensor_as_json(tensor: TensorPlan, writer: TermWriter) -> Json:
    content = {**vars(tensor), "terms": writer.terms(tensor.terms)}
    blocks = writer.blocks(content.pop("blocks"))
    return {**content, "blocks": blocks} if blocks else content


def _restored(content: Json, source: Architecture, target: Architecture, tensors: Path) -> GrowthPlan:
    _require_sizes(content["sizes"], source, target)
    store = TensorFile(tensors)
    reader = TermReader(store.tensor, content.get("sums", {}))
    method = dict(content["method"])
    return GrowthPlan(
        _options(method.pop("name"), method, content["seed"]),
        source,
        target,
        store.maps(content["maps"]),
        {stack: tuple(_layer(each, reader) for each in origins) for stack, origins in content["layers"].items()},
        tuple(_tensor(each, reader) for each in content["tensors"]),
        content["noise"],
        content["init_std"],
        content["config_change"],
        tuple(content["lossy"]),
        content["moves_norm_affines"],
        {name: store.maps(maps) for name, maps in content["term_maps"].items()},
    )


def _options(name: str, options: Json, seed: int) -> ExpansionOptions:
    """A plan is complete without its method, so one by a method that is not registered here can be read."""
    return methods.parse(name, options, seed) if name in methods.METHODS else ExpansionOptions(name, seed=seed)


def _require_sizes(sizes: Json, source: Architecture, target: Architecture) -> None:
    before, after = source.sizes(), target.sizes()
    for name in after:
        if sizes[name] != [before[name], after[name]]:
            planned = " -> ".join(map(str, sizes[name]))
            raise UserError(
                f"plans a growth of {name} {planned}, and these two models have {before[name]} -> {after[name]}"
            )


def _layer(content: Json, reader: TermReader) -> LayerOrigin:
    terms, fresh = reader.terms(content["terms"]), content.get("fresh", False)
    return LayerOrigin(terms, content["new"], content["cancels"], fresh=fresh)


def _tensor(content: Json, reader: TermReader) -> TensorPlan:
    restored = {
        "terms": reader.terms(content["terms"]),
        "blocks": reader.blocks(content.get("blocks", [])),
        "shape": tuple(content["shape"]),
        "noise": tuple(content["noise"]),
    }
    return TensorPlan(**{**content, **restored})


@dataclass
class TensorStore:
    """Writes maps as JSON, and what is too large for it as tensors, each once."""

    stored: dict[str, Tensor] = field(default_factory=Json)

    def maps(self, maps: Maps) -> Json:
        overrides = [
            {"stack": stack, "layer": layer, "spaces": self._spaces(spaces)}
            for (stack, layer), spaces in maps.overrides.items()
        ]
        return {"spaces": self._spaces(maps.spaces), "overrides": overrides}

    def _spaces(self, spaces: Mapping[str, SpaceMap]) -> Json:
        return {name: self._space(space) for name, space in spaces.items()}

    def _space(self, space: SpaceMap) -> Json:
        sides = {side: getattr(space, side) for side in SIDES}
        content = {side: None if each is None else self._map(each) for side, each in sides.items()}
        return {**content, "eta": space.eta, "appended": space.appended}

    def _map(self, each: Map) -> Json:
        if isinstance(each, DenseMap):
            return {"matrix": self.tensor(each.matrix.detach().double())}
        if each.identity:
            return {"identity": each.source}
        if len(each.runs) <= MOST_WORDS:
            return {"source": each.source, "blocks": list(_words(each))}
        return {"source": each.source, "index": self.tensor(each.index), "weight": self.tensor(each.weight)}

    def tensor(self, tensor: Tensor) -> str:
        for name, other in self.stored.items():
            if other.dtype == tensor.dtype and torch.equal(other, tensor):
                return name
        name = str(len(self.stored))
        self.stored[name] = tensor.contiguous().clone()
        return name


def _words(each: IndexMap) -> Iterator[str]:
    """A block a word: how many entries, from where (or zeros, or means), times what."""
    for run in each.runs:
        kind = {ZERO: "zeros", MEAN: "means"}.get(run.source, f"from {run.source}")
        yield f"{run.length} {kind}" + ("" if run.weight == 1 else f" x {run.weight!r}")


def _from_words(words: list[str], source: int) -> IndexMap:
    index, weight = [], []
    for word in words:
        block, _, factor = word.partition(" x ")
        length, kind, *start = block.split()
        if kind == "from":
            index.append(torch.arange(int(start[0]), int(start[0]) + int(length)))
        else:
            index.append(torch.full((int(length),), {"zeros": ZERO, "means": MEAN}[kind]))
        weight.append(torch.full((int(length),), float(factor or 1), dtype=torch.float64))
    return IndexMap(torch.cat(index), torch.cat(weight), source)


@dataclass(frozen=True)
class TensorFile:
    """Reads maps as `TensorStore` wrote them, each tensor once."""

    path: Path
    _read: dict[str, Tensor] = field(default_factory=dict)

    def maps(self, content: Json) -> Maps:
        overrides = {(each["stack"], each["layer"]): self._spaces(each["spaces"]) for each in content["overrides"]}
        return Maps(self._spaces(content["spaces"]), overrides)

    def _spaces(self, content: Json) -> dict[str, SpaceMap]:
        return {name: self._space(space) for name, space in content.items()}

    def _space(self, content: Json) -> SpaceMap:
        null_space = content["query_null_space"]
        return SpaceMap(
            writes=self._map(content["writes"]),
            reads=self._map(content["reads"]),
            gains=self._map(content["gains"]),
            eta=content["eta"],
            appended=content["appended"],
            query_null_space=None if null_space is None else cast(IndexMap, self._map(null_space)),
        )

    def _map(self, content: Json) -> Map:
        if "matrix" in content:
            return DenseMap(self.tensor(content["matrix"]))
        if "identity" in content:
            return copies(torch.arange(content["identity"]), content["identity"])
        if "blocks" in content:
            return _from_words(content["blocks"], content["source"])
        return IndexMap(self.tensor(content["index"]), self.tensor(content["weight"]), content["source"])

    def tensor(self, name: str) -> Tensor:
        if name not in self._read:
            self._read[name] = self._load(name)
        return self._read[name]

    def _load(self, name: str) -> Tensor:
        try:
            with safe_open(self.path, "pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor.clone()  # aligned: products of unaligned matrices differ in their last bits
        except (OSError, SafetensorError) as error:
            raise UserError(f"its tensors in {self.path} cannot be read ({error})") from error

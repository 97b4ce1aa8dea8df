"""Configs that go wrong in one place, drawn by a seed from the shipped ones, and what must become of each."""

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHIPPED = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "studies")
CONFIGS = [path for path in SHIPPED if not path.name.startswith(("in-mid-run", "base-from-6x512"))]
"""But for those whose stages share one schedule: there a valid value in one stage alone is refused. And for those that
differ from another one in a source's sizes."""
NAN, INF = float("nan"), float("inf")
NAMES = (
    "",
    ".",
    "..",
    "../up",
    "a/b",
    "/root",
    "a b",
    "-rf",
    "x" * 300,
    "a\0b",
    "line\nbreak",
    "\x1b[31m",
    "~",
    "nul:",
)
"""That name no folder."""
BAD: dict[str, tuple[Any, ...]] = {
    "seed": (-1, 1.5, NAN, "zero"),
    "processes": (0, -2, 1.5, "all", None),
    "max_time": ("soon", "0 hours", 5, "1 fortnight", NAN, "1e99 days"),
    "name": NAMES,
    "kind": ("", "trian", 5, None, ["train"]),
    "family": ("", "brt", 5, None),
    "batch": (0, -64, 64.5, NAN, "many", None, [64]),
    "micro_batch": (0, -1, 7, NAN, "few"),
    "layers": (-1, -3, 10**6, 2.5, NAN, "three", None),
    "hidden": (0, 10**9, 97, NAN, "wide"),
    "heads": (0, -1, 7, NAN, "some"),
    "patch": (0, -2, NAN, "big"),
    "dropout": (1, -0.1, NAN, "half"),
    "drop_path": (1, -0.1, NAN, "half"),
    "repeats": (0, -3, 2.5, 10**6, "thrice"),
    "evaluation_crop": (0, 1.5, NAN, "centre"),
    "init": (0, -1, INF, "small"),
    "peak": (0, -1e-3, NAN, INF, "high", None),
    "minimum": (-1, 10, NAN, "low"),
    "warmup": ("-5 steps", "5", 5, "ten steps", "1e400 steps", "5 weeks", "1e29 steps", None, NAN),
    "horizon": ("0 steps", "-5 steps", 100, "ten steps", "1e400 steps", "5 weeks", "", None, [1]),
    "fraction": (0, 2, -0.5, NAN, "half"),
    "evaluate_every": ("0 steps", 5, "often", None),
    "save_every": ("0 epochs", 5, "1 e", NAN),
    "log_every": (0, -1, 0.5, "never"),
    "keep": (0, -1, "all", 1.5),
    "zero_stage": (4, -1, "two", None),
    "precision": ("fp8", "", 16, None),
    "weight_decay": (-1, NAN, "some"),
    "eps": (-1, NAN, INF, "tiny"),
    "clip": (-1, NAN, "hard"),
    "block": (2, -1, 10**9, NAN, "long"),
    "mask": (0, 1, 1.5, NAN, "all"),
    "vocab_size": (3, -1, 10**9, "large"),
    "evaluation_blocks": (0, -1, "all"),
    "evaluation_images": (0, -1, NAN),
    "size": (0, -8, 10**6, "big"),
    "channels": (2, 0, "rgb"),
    "augment": ("flip", "", 5),
    "workers": (-1, 10**6, 1.5, "some"),
    "model": ("", "nope", "Small", 5, None),
    "source": ("", "nope", 5, None),
    "start": ("", "nope", "/no/such/folder", 5),
    "method": ("", "lemn", 5, None, {"name": "lemon", "depht": 1}, {"name": "lemon", "noise": NAN}),
    "dataset": (5, None, {}, [], [5], "/no/such/file.txt", "no-*.txt", "nowhere/*.png"),
    "tokenizer": ({"kind": "wordpiece"}, {"kind": "wordpiece", "path": "/no/vocab.txt"}, 5, {"vocab": 1}),
}
"""Values that a key of this name must not have, in any section."""
GOOD: dict[str, tuple[Any, ...]] = {
    "seed": (0, 1, 2**31, 10**18),
    "processes": (1, 2, 4, 8),
    "max_time": (None, "12 hours", "1 day", "90 seconds"),
    "batch": (64, 128, 1024),
    "micro_batch": (None, 1, 2, 4),
    "dropout": (0, 0.1, 0.99),
    "peak": (1e-2, 1.0, 1e6),
    "minimum": (0, 1e-9),
    "evaluate_every": ("1 steps", "1e12 steps", "3 epochs", "1e15 flops", "5 samples"),
    "save_every": ("1 step", "1e9 tokens", "1e29 flops"),
    "log_every": (1, 10**9),
    "keep": (1, 10**6),
    "zero_stage": (0, 1, 2, 3),
    "precision": ("fp32", "bf16"),
    "weight_decay": (0, 0.5),
    "activation_checkpointing": (True, False),
    "tensorboard": (True, False),
    "trackers": ([], ["tensorboard"]),
    "workers": (0, 12),
}
"""Values that it may have."""
ODD = (
    "%s",
    "{name}",
    "null",
    "~",
    "#",
    "&a",
    "*",
    "a\tb",
    "ä…\u202e",
    "\x1b[31m",
    "' or 1",
    "$HOME",
    "C:\\x",
    "0x10",
    "1_0",
)
"""Texts that are neither surely right nor surely wrong: whatever is said of them, is said in one line."""
REQUIRED = {
    "kind",
    "name",
    "model",
    "batch",
    "schedule",
    "peak",
    "horizon",
    "family",
    "layers",
    "hidden",
    "heads",
    "data",
}
REQUIRED |= {"models", "stages"}


@dataclass(frozen=True)
class Mutation:
    """tree: the config. key: what was changed. valid: None where both may be."""

    source: Path
    tree: dict[str, Any]
    key: str
    value: Any
    valid: bool | None


def mutations(count: int, folder: Path) -> Iterator[Mutation]:
    """So many, the same ones at every call. folder: where all of them would run."""
    for seed in range(count):
        rng = random.Random(seed)
        source = CONFIGS[seed % len(CONFIGS)]
        tree = json.loads(json.dumps(yaml.safe_load(source.read_text())))  # nothing is shared any more
        tree["folder"] = str(folder / "{name}")
        kind = KINDS[seed // len(CONFIGS) % len(KINDS)]
        key, value, valid = kind(rng, tree)
        yield Mutation(source, tree, key, value, valid)


def _places(node: Any, names: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every (section, key) whose key is among the names; a method's own options are mutated as its value."""
    if isinstance(node, dict):
        yield from ((node, key) for key in node if key in names)
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        if key != "method":
            yield from _places(child, names)


def _draw(rng: random.Random, tree: Any, names: Any) -> tuple[dict[str, Any], str]:
    """A place: first the key, so that frequent ones are not drawn more often."""
    places = list(_places(tree, names))
    name = rng.choice(sorted({key for _, key in places}))
    return rng.choice([place for place in places if place[1] == name])


def _bad(rng: random.Random, tree: Any) -> tuple[str, Any, bool | None]:
    """A warm-up of any length may end before a horizon in epochs, as long as nobody has counted the samples."""
    section, key = _draw(rng, tree, BAD)
    section[key] = copy.deepcopy(rng.choice(BAD[key]))
    counted = key != "warmup" or "epochs" not in str(section.get("horizon"))
    return key, section[key], False if counted or section[key] != "1e29 steps" else None


def _added(rng: random.Random, tree: Any) -> tuple[str, Any, bool]:
    """A key that the section may have and had not, with a bad value: defaults are checked as what is written."""
    stage = rng.choice([stage for stage in tree["stages"] if stage["kind"] == "train"])
    key = rng.choice(["micro_batch", "log_every", "keep", "zero_stage", "precision", "save_every"])
    stage[key] = rng.choice(BAD[key])
    return key, stage[key], False


def _unknown(rng: random.Random, tree: Any) -> tuple[str, Any, bool]:
    sections = [tree, tree["data"], *tree["models"].values(), *tree["stages"], *(s for s, _ in _places(tree, {"peak"}))]
    section = rng.choice(sections)
    key = rng.choice(["batchh", "lr", "Seed", "", "a.b", "größe", "x" * 200, "__class__", "train batch", "0"])
    section[key] = rng.choice([1, None, "x", {}, []])
    return key, section[key], False


def _missing(rng: random.Random, tree: Any) -> tuple[str, Any, bool]:
    """A schedule and a tokenizer have a kind by default, a stage its run's data."""
    section, key = _draw(rng, tree, REQUIRED)
    while (key == "kind" and {"peak", "vocab_size", "path"} & set(section)) or (key == "data" and section is not tree):
        section, key = _draw(rng, tree, REQUIRED)
    del section[key]
    return key, "removed", False


def _twice(rng: random.Random, tree: Any) -> tuple[str, Any, bool]:
    first, second = rng.sample(tree["stages"], 2)
    first["name"] = second["name"]
    return "name", first["name"], False


def _backwards(rng: random.Random, tree: Any) -> tuple[str, Any, bool]:
    """A stage that starts from a later one, or from itself."""
    number = rng.randrange(len(tree["stages"]))
    stage, key = tree["stages"][number], "source" if tree["stages"][number]["kind"] == "expand" else "start"
    stage[key] = rng.choice(tree["stages"][number:])["name"]
    return key, stage[key], False


def _good(rng: random.Random, tree: Any) -> tuple[str, Any, bool]:
    train = rng.choice([stage for stage in tree["stages"] if stage["kind"] == "train"])
    key = rng.choice(sorted(GOOD))
    owner = {
        "dropout": rng.choice(list(tree["models"].values())),
        "peak": train["schedule"],
        "minimum": train["schedule"],
        "weight_decay": train.setdefault("optimizer", {}),
        "workers": tree["data"],
        **dict.fromkeys(("seed", "processes", "max_time"), tree),
    }.get(key, train)
    owner[key] = rng.choice(GOOD[key])
    return key, owner[key], True


def _odd(rng: random.Random, tree: Any) -> tuple[str, Any, None]:
    section, key = _draw(rng, tree, {"name", "dataset", "subset", "column", "path", "folder", "evaluation", "source"})
    section[key] = rng.choice(ODD)
    return key, section[key], None


KINDS = (_bad, _good, _bad, _unknown, _missing, _bad, _good, _twice, _bad, _backwards, _odd, _added, _bad)

"""One state in every layout, and files as DeepSpeed leaves them: no manifest, no config."""

from pathlib import Path

import torch
from test_grown_moments import HYPER

from pipeline import checkpoints
from pipeline.checkpoints import Format, stream, zero_write
from pipeline.state import Group, State, in_memory

FORMATS = {"1 on 3": Format("zero", 1, 3), "2 on 2, bf16": Format("zero", 2, 2, bf16=True), "3 on 2": Format("zero", 3, 2), "3 on 4": Format("zero", 3, 4),
           "universal": Format("universal"), "huggingface": Format("huggingface")}


def state() -> State:
    """Of no model that we know: two groups, a frozen parameter, a tied one, a buffer."""
    generator = torch.Generator().manual_seed(4)
    shapes = {"a": (5, 7), "b": (3,), "c": (1,), "frozen": (2, 3)}
    entries = [in_memory((n, torch.randn(s, generator=generator)) for n, s in shapes.items()) for _ in range(3)]
    slots = {slot: {n: e for n, e in held.items() if n != "frozen"} for slot, held in zip(zero_write.SLOTS, entries[1:], strict=True)}
    groups = Group(("a",), {**HYPER, "weight_decay": 0.1}), Group(("b", "c"), {**HYPER, "weight_decay": 0.0})
    return State(entries[0], slots=slots, steps={"a": 4.0, "b": 4.0, "c": 4.0}, groups=groups, aliases={"tied": "a"}, frozen=("frozen",),
                 buffers=in_memory([("mask", torch.ones(4))]))


def foreign(folder: Path, held: State | None = None, form: Format = Format("zero", 2, 2)) -> Path:
    """Files as DeepSpeed leaves them: no manifest, no config."""
    folder.mkdir(parents=True)
    stream.write(checkpoints.files(held or state(), folder, form, step=4), folder)
    return folder

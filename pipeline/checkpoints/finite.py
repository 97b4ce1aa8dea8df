"""What keeps a checkpoint from being published: weights or optimizer state with numbers that are infinite or NaN."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

CHUNK = 1 << 14
"""Elements that are looked at at once: so few that torch takes no other thread for them."""
Keys = tuple[object, ...]
"""Where a tensor stands in the tree of a file."""
Spans = Sequence[tuple[int, int]]
"""Elements (from, to) of a flat tensor that mean something; DeepSpeed leaves what pads stage 3's shares as the memory
was."""


def not_finite(tree: Mapping[str, Any], spans: Sequence[Spans] = ()) -> str | None:
    """The first tensor with numbers that are not finite, by its keys in `tree`, the content of a file of DeepSpeed;
    None where there is none. Buffers of a model may hold what they want. spans: of stage 3's flat tensors, by their
    sub-group."""
    buffers = {("module", name) for name in tree.get("buffer_names") or ()}
    seen: set[tuple[int, int, Any]] = set()
    for keys, tensor in _tensors(tree, ()):
        place = (tensor.data_ptr(), tensor.numel(), tensor.dtype)
        if keys in buffers or place in seen or not tensor.is_floating_point():
            continue
        seen.add(place)
        if not _finite(tensor) and not _finite_within(tensor, _spans_of(keys, tensor, spans)):
            return ".".join(map(str, keys))
    return None


def _tensors(tree: Any, keys: Keys) -> Iterator[tuple[Keys, Tensor]]:
    if isinstance(tree, Tensor):
        yield keys, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _tensors(value, (*keys, key))
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from _tensors(value, (*keys, number))


def _finite(tensor: Tensor) -> bool:
    """A sum is NaN or infinite where one of its numbers is; the reverse takes a second look."""
    chunks = tensor.detach().flatten().split(CHUNK)
    return all(math.isfinite(chunk.sum()) or bool(chunk.isfinite().all()) for chunk in chunks)


def _finite_within(tensor: Tensor, spans: Spans | None) -> bool:
    return spans is not None and all(_finite(tensor[start:stop]) for start, stop in spans)


def _spans_of(keys: Keys, tensor: Tensor, spans: Sequence[Spans]) -> Spans | None:
    """Those of a flat tensor: `fp32_flat_groups`, or what torch's optimizer keeps beside it, by its number."""
    if keys[:2] == ("optimizer_state_dict", "fp32_flat_groups"):
        number = keys[2]
    elif keys[:3] == ("optimizer_state_dict", "optimizer_state_dict", "state"):
        number = keys[3]
    else:
        return None
    return spans[number] if tensor.dim() == 1 and isinstance(number, int) and number < len(spans) else None

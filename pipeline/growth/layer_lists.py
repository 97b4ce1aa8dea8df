"""Lists of layers as people write them: `0-23,8-31` is layers 0 to 23, and behind them 8 to 31."""

import re
from itertools import pairwise

from pipeline.config.limits import MOST_LAYERS

EXAMPLE = "0-23,8-31"
PIECE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
"""One layer, or the first and the last of several."""


def parse(text: str) -> list[int] | None:
    """The layers that a text lists; None where it is no list, or one of more layers than any model has."""
    layers: list[int] = []
    for piece in text.split(","):
        match = PIECE.fullmatch(piece.strip())
        if match is None:
            return None
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or len(layers) + last - first >= MOST_LAYERS:
            return None
        layers += range(first, last + 1)
    return layers


def in_order(layers: list[int]) -> bool:
    """Whether every layer from 0 on stands in its order, repeated directly behind itself or not at all."""
    steps = {after - before for before, after in pairwise(layers)}
    return layers[:1] == [0] and steps <= {0, 1}


def mistake(text: str, layers: list[int], before: int, after: int, repeats_behind: bool) -> str | None:
    """Why `after` layers cannot be those of the list `text`, `layers`, of a source of `before`; None where they can.

    repeats_behind: a layer may be repeated directly behind itself only."""
    if len(layers) != after:
        return f"placement '{text}' lists {len(layers)} layers, and the target has {after}; list as many"
    if max(layers) >= before:
        return f"placement '{text}' names layer {max(layers)}, and the source has {before}, from 0 on"
    if left_out := sorted(set(range(before)) - set(layers)):
        return f"placement '{text}' leaves out layer {left_out[0]} of the source; name each of its {before} layers"
    if (repeats_behind or after == before) and not in_order(layers):
        way_out = "list them in the source's order" if after == before else "use depth 'copy' for any other list"
        return f"placement '{text}' has a layer elsewhere than directly behind its origin; {way_out}"
    return None

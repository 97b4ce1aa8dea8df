"""Direct labels that find a free place: each text tries a few positions beside its point and takes the emptiest."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

FONT = 11
"""Points; a figure is drawn 72 units to the inch, so a point is a unit."""
ROW, LETTER, GAP = 15, 6.8, 7
"""Units: height of a row of text, mean width of a bold letter (a page's font may be narrower), gap to the point."""
FAR = (0, 22, 44, 66)
"""Units by which a text that has no other place to go may be moved up or down; a thin leader then leads to it."""
SIDES = {
    "right": (1, 0), "upper right": (1, 1), "lower right": (1, -1), "lower left": (-1, -1), "upper left": (-1, 1),
    "above": (0, 1), "below": (0, -1),
}
"""Where a text stands from its point, as signs of x and y."""
BLOCKED, OUTSIDE = 40, 1000
"""Costs of covering another text and of leaving the figure, in points of covered curve."""


@dataclass(frozen=True)
class Label:
    """`rows` of text that may stand beside any of `points` (x, y in data units) on any of `sides`, best first;
    `leads`: it may also stand further away, at the end of a leader."""

    rows: tuple[str, ...]
    points: tuple[tuple[float, float], ...]
    sides: tuple[str, ...]
    colour: str
    weight: str = "normal"
    leads: bool = False


def write(axes: Axes, labels: list[Label]) -> None:
    """Write `labels`, each where it covers least of the axes' lines and of the texts before it. The limits of the
    axes must be final."""
    ink, taken = _ink(axes), []
    bottom = axes.bbox.y0
    for label in labels:
        places = [
            (*axes.transData.transform(point), SIDES[side], far)
            for far in (FAR if label.leads else (0,)) for point in label.points for side in label.sides
        ]
        boxes = [_box(label, *place) for place in places]
        costs = [_cost(box, ink, taken, axes.figure.bbox.x1, bottom) + rank for rank, box in enumerate(boxes)]
        best = int(np.argmin(costs))
        taken.append(boxes[best])
        _write(axes, label, boxes[best], places[best])


def _ink(axes: Axes) -> np.ndarray:
    """Points (n, 2) along all lines of the axes, every 3 units."""
    pieces = [np.empty((0, 2))]
    for line in axes.get_lines():
        points = line.get_transform().transform(np.column_stack(line.get_data()).astype(float))
        for start, end in zip(points[:-1], points[1:], strict=True):
            steps = min(1000, int(np.hypot(*(end - start)) // 3) + 1)
            pieces.append(start + np.linspace(0, 1, steps, endpoint=False)[:, None] * (end - start))
    return np.concatenate(pieces)


def _box(label: Label, x: float, y: float, side: tuple[int, int], far: int) -> tuple[float, float, float, float]:
    """Left, bottom, right, top of the text."""
    width, height = LETTER * max(len(row) for row in label.rows), ROW * len(label.rows)
    left = x + (GAP if side[0] > 0 else -GAP - width if side[0] < 0 else -width / 2)
    low = y + (GAP - 2 if side[1] > 0 else 2 - GAP - height if side[1] < 0 else -height / 2)
    low += far * side[1]
    return left, low, left + width, low + height


def _cost(box: tuple, ink: np.ndarray, taken: list[tuple], right: float, bottom: float) -> float:
    left, low, end, high = box
    covered = ((ink[:, 0] > left) & (ink[:, 0] < end) & (ink[:, 1] > low) & (ink[:, 1] < high)).sum()
    met = sum(left < other[2] and other[0] < end and low < other[3] and other[1] < high for other in taken)
    return covered + BLOCKED * met + OUTSIDE * (end > right or low < bottom or left < 0)


def _write(axes: Axes, label: Label, box: tuple, place: tuple[float, float, tuple[int, int], int]) -> None:
    """One text per row: a page's font has other widths, so only the anchor of a row can be relied on."""
    left, low, right, top = box
    x, y, side, far = place
    anchor = (left + right) / 2 if side[0] == 0 else left if side[0] > 0 else right
    for index, row in enumerate(label.rows):
        axes.annotate(
            row, (anchor, top - ROW * (index + 0.5)), xycoords="figure pixels", ha=("center", "left", "right")[side[0]],
            va="center", color=label.colour, fontsize=FONT, fontweight=label.weight, annotation_clip=False,
        )
    if far:
        end = (anchor, top if side[1] < 0 else low)
        arrow = {"arrowstyle": "-", "color": label.colour, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4}
        axes.annotate("", (x, y), end, xycoords="figure pixels", textcoords="figure pixels", arrowprops=arrow)

"""One clean way to draw lines: direct labels, units on the axes, colours that a page can re-ink for the dark.

Figures are inline SVG. Text stays text, so that it is sharp, searchable and in the page's font; the colours below
are written into the page as CSS variables (`ink`).
"""

import io
import re
from dataclasses import dataclass
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from pipeline.reporting.labels import FONT, Label

INK, MUTED, RULE = "#1c2127", "#5b6571", "#d5dae0"
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#b65b91", "#7d8791"
SKY, BROWN = "#3b8fd0", "#9c6b1e"
"""Okabe and Ito's palette, which colour-blind readers can tell apart; its purple darkened for thin lines on white."""
VARIABLES = {
    INK: "ink", MUTED: "muted", RULE: "rule", BLUE: "blue", ORANGE: "orange", GREEN: "green", PURPLE: "purple",
    GREY: "grey", SKY: "sky", BROWN: "brown",
}
WIDTH, HEIGHT = 10.4, 4.6
"""Inches of 72 units; shown 1000 pixels wide, so that 11 points are 15 pixels."""
SETTLED = 0.1
"""Share of a line's length whose steep beginning may be cut off: beside it nothing else could be seen."""
TIDY = (
    (r"<!--.*?-->\s*", ""),
    (r"<defs>\s*<style.*?</style>\s*</defs>", ""),  # a rule for '*', which would hold for the whole page
    (r'<g id="[^"]*"/>\s*', ""),
    (r'<g id="[^"]*">', "<g>"),
    (r' transform="rotate\(-0 [^"]*"', ""),
    (r"font-family: [^;\"]*", "font-family: var(--sans)"),
)
"""What matplotlib's SVG says that a page needs not, or would meet twice with several figures."""


@dataclass(frozen=True)
class Line:
    """A series. `label` is written beside it; `faint` puts it in the background; `steep`: it begins with
    a fall or rise that may be cut off."""

    x: list[float]
    y: list[float]
    colour: str
    label: str = ""
    style: str = "-"
    width: float = 2.0
    faint: bool = False
    steep: bool = False


def blank(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Axes with a horizontal grid and room on the right for labels."""
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=72)
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0.09, 0.135, 0.75, 0.84))
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=MUTED, labelsize=FONT, length=3)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel, fontsize=FONT, color=INK, labelpad=6)
    axes.set_ylabel(ylabel, fontsize=FONT, color=INK, labelpad=8)
    return figure, axes


def draw(axes: Axes, lines: list[Line]) -> None:
    """Draw `lines`."""
    for line in lines:
        axes.plot(
            line.x, line.y, line.style, color=line.colour, linewidth=line.width,
            alpha=0.3 if line.faint else 1.0, solid_capstyle="round", zorder=1 if line.faint else 3,
        )


def cut(axes: Axes, lines: list[Line], room: float = 0.05) -> None:
    """Limit the y axis to what comes after steep beginnings, with `room` (a share of the height) below for text."""
    seen = []
    for line in lines:
        begin = line.x[0] + SETTLED * (line.x[-1] - line.x[0]) if line.steep and line.x else float("-inf")
        seen += [y for x, y in zip(line.x, line.y, strict=True) if x >= begin]
    if seen:
        span = max(seen) - min(seen) or 1.0
        axes.set_ylim(min(seen) - room * span, max(seen) + 0.04 * span)


def named(line: Line) -> Label:
    """The label of a line: at its end, or else along its way."""
    count = len(line.x)
    places = sorted({count - 1} | {count * twelfth // 12 for twelfth in range(3, 12)}, reverse=True)
    points = tuple((line.x[index], line.y[index]) for index in places)
    sides = ("right", "upper right", "above", "lower left", "below")
    return Label((line.label,), points, sides, line.colour, "bold")


def mark(axes: Axes, x: float, y: float, rows: tuple[str, ...], colour: str) -> Label:
    """A dot at (x, y), and its text: below on the left, where falling curves leave room, or else around it."""
    axes.plot([x], [y], "o", color=colour, markersize=8, zorder=5, clip_on=False)
    return Label(rows, ((x, y),), ("lower left", "lower right", "upper right"), colour, leads=True)


def svg(figure: Figure, title: str) -> str:
    """The figure as an inline <svg> named `title`, which must be unique on its page: clip paths and markers are
    named after it. No prolog, no metadata; fonts and colours are left to the page."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    body = text.getvalue().partition("<svg")[2].partition(">")[2]
    for pattern, replacement in TIDY:
        body = re.sub(pattern, replacement, body, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    box = f"0 0 {72 * WIDTH:g} {72 * HEIGHT:g}"
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(title)}">{body}'

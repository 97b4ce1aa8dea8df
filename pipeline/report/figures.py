"""The report's figures, drawn from its content alone: what any reader of report.json could draw as well.

A figure is data first (`Chart`), then an SVG in one of two palettes: a page shows the one that suits its background.
"""

import base64
import io
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.accounting.recorded_runs import Evaluation
from pipeline.accounting.savings import Comparison
from pipeline.report.content import Run, Series
from pipeline.report.formatting import decimal, flops, saving, scale

PALETTES = {
    "light": {
        "page": "#ffffff",
        "panel": "#f5f7f9",
        "warn": "#8a4b00",
        "warned": "#fff4e0",
        "ink": "#1c2127",
        "muted": "#5b6571",
        "rule": "#d5dae0",
        "blue": "#0072b2",
        "orange": "#d55e00",
        "green": "#00805d",
        "purple": "#a3497f",
        "grey": "#7d8791",
        "sky": "#3b8fd0",
        "brown": "#8a5d12",
    },
    "dark": {
        "page": "#14181c",
        "panel": "#1d2329",
        "warn": "#f5c77e",
        "warned": "#33280f",
        "ink": "#e4e8ec",
        "muted": "#a0abb6",
        "rule": "#38414a",
        "blue": "#56a9e8",
        "orange": "#f28a3c",
        "green": "#2fbf95",
        "purple": "#dd8fbd",
        "grey": "#98a3ae",
        "sky": "#9bcdf5",
        "brown": "#d3a04c",
    },
}
"""Of the page and its figures. Okabe and Ito's colours, which the colour-blind can tell apart, for each background."""
SCRATCH, EXPANDED, OTHER = ("blue", "sky"), ("orange", "purple", "brown", "ink"), ("grey", "green")
RUNS = ("blue", "orange", "green", "purple", "brown", "sky", "grey")
CROWDED = 3
"""From so many comparisons on, a figure leaves out what came before the expansions: the bars state it."""
MEASURES = {"loss": "evaluation loss, nats", "top1": "top-1 accuracy, %"}
SETTLED = 0.1
"""Share of a line's length whose steep beginning may be cut off: beside it nothing else could be seen."""
STYLE = {
    "figure.figsize": (10.4, 4.8),
    "figure.constrained_layout.use": True,
    "savefig.dpi": 72,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "font.size": 11,
    "font.sans-serif": ["Segoe UI", "Roboto", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "legend.frameon": False,
    "legend.borderaxespad": 0,
    "legend.handlelength": 2.4,
    "lines.solid_capstyle": "round",
}
"""Shown 1000 pixels wide, so that 11 points are 15 pixels."""


@dataclass(frozen=True)
class Line:
    """A series, or with style `o` a dot. label: its entry in the legend; steep: its steep beginning may be cut off."""

    x: list[float]
    y: list[float]
    colour: str
    label: str | None = None
    style: str = "-"
    width: float = 2.0
    alpha: float = 1.0
    steep: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure as data. events: what happens at an x, drawn as vertical lines."""

    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    events: tuple[tuple[float, str], ...] = ()


def colours(run: Run) -> dict[str, str]:
    """A colour for each training stage, the same in all figures of the run: blue from scratch, warm expanded."""
    trained = [stage.stage for stage in run.stages if stage.kind == "train"]
    scratch = {one.baseline.stage for one in run.comparisons if one.baseline.run is None}
    expanded = {one.stage for one in run.comparisons}
    chosen = {}
    for members, palette in ((scratch, SCRATCH), (expanded, EXPANDED), ({*trained} - scratch - expanded, OTHER)):
        named = [stage for stage in trained if stage in members]
        chosen |= {stage: palette[index % len(palette)] for index, stage in enumerate(named)}
    return chosen


def compared(run: Run, comparisons: list[Comparison], measure: str = "loss") -> Chart:
    """One baseline, what was expanded, and (unless there are many) that once more behind its sources (dashed), against
    training FLOPs. The legend says what the target cost."""
    chosen, first = colours(run), comparisons[0]
    blue = "blue" if first.baseline.run else chosen[first.baseline.stage]
    scratch = _line(first.curves.scratch, measure, blue, f"{first.baseline.stage}, from scratch", steep=True)
    lines = _with_cost(scratch, measure, first.target.loss, first.scratch.flops)
    sources: dict[str, Line] = {}
    for one in comparisons:
        loss, name = one.target.loss, one.stage
        line = _line(one.curves.expanded, measure, chosen[name], f"{name}, expanded", steep=_lossy(one))
        lines += _with_cost(line, measure, loss, one.given.flops, one.given.saving_percent)
        if one.source.flops and len(comparisons) < CROWDED:
            behind = _behind(line, one.source.flops, f"{name}, all-in")
            lines += _with_cost(behind, measure, loss, one.all_in.flops, one.all_in.saving_percent)
            for source in one.curves.sources:
                look = {"width": 1.2, "steep": source.points[0].flops == 0}
                colour = chosen.get(source.stage, "grey")
                sources.setdefault(source.stage, _line(source.points, measure, colour, source.stage, **look))
    if measure == "loss":
        end = max(line.x[-1] for line in lines)
        losses = {one.target.loss for one in comparisons}
        lines += [Line([0, end], [loss, loss], "muted", f"target {decimal(loss)}", ":", 1.4) for loss in sorted(losses)]
    title = f"{run.title}: {MEASURES[measure]}, against training FLOPs, model {first.model}"
    return _against_flops(title, measure, [*lines, *sources.values()])


def _with_cost(line: Line, measure: str, loss: float, cost: int | None, percent: float | None = None) -> list[Line]:
    """The line; where it met the target, also a dot there, and in its label what that cost."""
    if cost is None or measure != "loss":
        return [line]
    words = flops(cost) if percent is None else f"{flops(cost)}, {saving(percent)}"
    return [replace(line, label=f"{line.label}: {words}"), Line([cost], [loss], line.colour, style="o")]


def uncompared(run: Run, measure: str = "loss") -> Chart:
    """Every training stage against its own training FLOPs, where nothing is compared."""
    lines = [
        _line(stage.evaluations, measure, colours(run)[stage.stage], stage.stage, steep=True)
        for stage in run.stages
        if stage.evaluations
    ]
    return _against_flops(f"{run.title}: {MEASURES[measure]}, against training FLOPs", measure, lines)


def overlay(runs: list[Run]) -> Chart:
    """The comparisons of all runs: a colour for each run, from scratch dotted, all-in dashed."""
    lines: dict[str, Line] = {}
    for run, colour in zip(runs, RUNS * len(runs), strict=False):
        for one in run.comparisons:
            place = f"{one.baseline.run or run.title}: {one.baseline.stage}"
            name = f"{run.title}: {one.stage}"
            scratch = _line(one.curves.scratch, "loss", colour, place, style=":", steep=True)
            lines.setdefault(place, scratch)
            lines[name] = _line(one.curves.expanded, "loss", colour, name, steep=_lossy(one))
            if one.source.flops:
                lines[f"{name}, all-in"] = _behind(lines[name], one.source.flops, None)
    return _against_flops("All runs: evaluation loss against training FLOPs", "loss", list(lines.values()))


def _line(points: list[Evaluation], measure: str, colour: str, label: str, **look: Any) -> Line:
    known = [(point.flops, value) for point in points if (value := getattr(point, measure)) is not None]
    factor = 100 if measure == "top1" else 1
    return Line([x for x, _ in known], [factor * y for _, y in known], colour, label, **look)


def _behind(line: Line, cost: int, label: str | None) -> Line:
    """The line once more, dashed, behind what its sources cost."""
    return replace(line, x=[x + cost for x in line.x], label=label, style="--", width=1.6)


def _lossy(one: Comparison) -> bool:
    """Whether its curve begins with the fall from what a lossy method left of the function."""
    return one.expansion is not None and one.expansion.lossless is False


def _against_flops(title: str, measure: str, lines: list[Line]) -> Chart:
    """x is in FLOPs; the axis gets the prefix that suits it."""
    power, prefix = scale(max((x for line in lines for x in line.x), default=0))
    scaled = [replace(line, x=[x / 1000**power for x in line.x]) for line in lines]
    return Chart(title, f"training compute, {prefix}FLOPs", MEASURES[measure], scaled)


def training(run: Run) -> Chart:
    """Training loss against steps: as recorded (light) and smoothed; where an expanded stage's warm-up ends."""
    chosen, lines = colours(run), []
    lossy = {one.stage: _lossy(one) for one in run.comparisons}
    for stage in (stage for stage in run.stages if stage.training.smooth):
        steep = not stage.facts.get("origin") or lossy.get(stage.stage, False)
        look = {"colour": chosen[stage.stage], "steep": steep}
        lines.append(_series(stage.training.raw, width=0.9, alpha=0.3, **look))
        lines.append(_series(stage.training.smooth, label=stage.stage, **look))
    ends = {stage.facts["schedule"]["warmup"] for stage in run.stages if stage.stage in lossy} - {0}
    events = tuple((step, "end of an expanded model's warm-up") for step in sorted(ends))
    return Chart(f"{run.title}: training loss against steps", "step", "training loss, nats", lines, events)


def rates(run: Run) -> Chart:
    """Learning rate against steps, as recorded."""
    trained = sorted((stage for stage in run.stages if stage.training.rate), key=lambda stage: -stage.step)
    chosen = colours(run)
    lines = [_series(stage.training.rate, colour=chosen[stage.stage], label=stage.stage) for stage in trained]
    return Chart(f"{run.title}: learning rates against steps", "step", "learning rate", lines)


def _series(pairs: Series, **look: Any) -> Line:
    return Line([step for step, _ in pairs], [value for _, value in pairs], **look)


def data_uri(chart: Chart, palette: str) -> str:
    """The chart as the source of an image, so that no figure can meddle with the page or with another figure."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg(chart, palette)).decode('ascii')}"


def svg(chart: Chart, palette: str) -> bytes:
    """The chart as a standalone SVG with a transparent background. Text stays text, in the reader's font."""
    ink, file = PALETTES[palette], io.BytesIO()
    inked = dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), ink["muted"])
    inked |= {"text.color": ink["ink"], "axes.labelcolor": ink["ink"], "grid.color": ink["rule"]}
    with matplotlib.rc_context({**STYLE, **inked, "svg.hashsalt": chart.title}):
        figure = Figure()
        _draw(figure.add_subplot(), chart, ink)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _draw(axes: Axes, chart: Chart, ink: dict[str, str]) -> None:
    for line in chart.lines:
        look = {"color": ink[line.colour], "label": line.label, "linewidth": line.width, "alpha": line.alpha}
        axes.plot(line.x, line.y, line.style, zorder=2 + line.alpha, clip_on=line.style != "o", **look)
    for x, meaning in chart.events:
        axes.axvline(x, color=ink["muted"], linewidth=1.4, linestyle=":", label=meaning)
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label, xlim=(0, None), ylim=settled(chart.lines))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    columns = max(1, 100 // (6 + max(map(len, handles), default=0)))  # a row holds about 100 letters
    axes.legend(handles.values(), handles, loc="lower left", bbox_to_anchor=(0, 1.03), ncols=columns)


def settled(lines: list[Line]) -> tuple[float | None, float | None]:
    """Limits of the y axis: what comes after steep beginnings, and a little room."""
    seen = [
        y
        for line in lines
        for x, y in zip(line.x, line.y, strict=True)
        if not line.steep or x >= line.x[0] + SETTLED * (line.x[-1] - line.x[0])
    ]
    if not seen:
        return None, None
    room = 0.05 * (max(seen) - min(seen) or abs(max(seen)) or 1.0)
    return min(seen) - room, max(seen) + room

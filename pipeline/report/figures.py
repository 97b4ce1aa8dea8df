"""The report's figures, drawn from its content alone: what any reader of report.json could draw as well.

A figure is data first (`Chart`), then an SVG in one of two palettes: a page shows the one that suits its background.
"""

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.accounting.recorded_runs import Evaluation
from pipeline.accounting.savings import Savings, Target
from pipeline.report.content import Run, Series, Stage
from pipeline.report.formatting import decimal, flops, saving, scale

COLOURS = {
    "page": ("#ffffff", "#14181c"),
    "panel": ("#f5f7f9", "#1d2329"),
    "warn": ("#8a4b00", "#f5c77e"),
    "warned": ("#fff4e0", "#33280f"),
    "ink": ("#1c2127", "#e4e8ec"),
    "muted": ("#5b6571", "#a0abb6"),
    "rule": ("#d5dae0", "#38414a"),
    "blue": ("#0072b2", "#56a9e8"),
    "orange": ("#d55e00", "#f28a3c"),
    "green": ("#00805d", "#2fbf95"),
    "purple": ("#a3497f", "#dd8fbd"),
    "grey": ("#7d8791", "#98a3ae"),
    "sky": ("#3b8fd0", "#9bcdf5"),
    "brown": ("#8a5d12", "#d3a04c"),
}
"""Of the page and its figures, on light and on dark: Okabe and Ito's, which the colour-blind can tell apart."""
PALETTES = {
    background: {name: pair[index] for name, pair in COLOURS.items()}
    for index, background in enumerate(("light", "dark"))
}
SCRATCH, OTHER = ("blue", "sky"), ("grey", "green")
EXPANDED = ("orange", "purple", "brown", "ink", "green", "grey")
RUNS = ("blue", "orange", "green", "purple", "brown", "sky", "grey")
DOTS = ("o", "s")
CROWDED = 3
"""From so many comparisons on, a figure leaves out the training before the expansions: the bars state it."""
MEASURES = {"loss": "evaluation loss, nats", "top1": "top-1 accuracy, %"}
SCALES = {"loss": 1, "top1": 100}
"""By which a measure is drawn."""
SETTLED = 0.1
"""Share of a line's length whose steep beginning may be cut off, so that the rest has the room of the figure."""
WIDTH, HEIGHT = 10.4, 4.8
"""Inches; of a height where a figure has none of its own."""
CANVAS = {"figure.constrained_layout.use": True, "savefig.transparent": True}
FONTS = ["Segoe UI", "Roboto", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"]
TEXT = {"svg.fonttype": "none", "font.size": 11, "font.sans-serif": FONTS}
SPINES = dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top"), False)
AXES = {"axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "ytick.major.size": 0, "xtick.major.size": 3}
LEGEND = {"legend.frameon": False, "legend.borderaxespad": 0, "legend.handlelength": 2.4}
STYLE: dict[Any, Any] = {**CANVAS, **TEXT, **SPINES, **AXES, **LEGEND, "lines.solid_capstyle": "round"}
"""Shown 1000 pixels wide, so that 11 points are 15 pixels."""


@dataclass(frozen=True)
class Line:
    """A series, or with a style of DOTS dots. label: its entry in the legend; steep: its beginning may be cut off."""

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
    """Lines, as data. events: what happens at an x, drawn as vertical lines."""

    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    events: tuple[tuple[float, str], ...] = ()

    @property
    def height(self) -> float:
        return HEIGHT

    def draw(self, axes: Axes, colours: Mapping[str, str]) -> None:
        _draw(axes, self, colours)


class Drawn(Protocol):
    """A figure as data, with what draws it. height: in inches; colours: of a palette, by name."""

    @property
    def title(self) -> str: ...

    @property
    def height(self) -> float: ...

    def draw(self, axes: Axes, colours: Mapping[str, str]) -> None: ...


def colours(run: Run) -> dict[str, str]:
    """A colour for each training stage, the same in all figures of the run: blue from scratch, warm expanded."""
    trained = [stage.stage for stage in run.stages if stage.kind in ("train", "fit")]
    scratch = {one.baseline.stage for one in run.comparisons if one.baseline.run is None}
    expanded = {one.stage for one in run.comparisons}
    colour_of: dict[str, str] = {}
    for members, palette in ((scratch, SCRATCH), (expanded, EXPANDED), ({*trained} - scratch - expanded, OTHER)):
        group = [stage for stage in trained if stage in members]
        colour_of |= {stage: palette[index % len(palette)] for index, stage in enumerate(group)}
    return colour_of


def compared(run: Run, comparisons: list[Savings], measure: str = "loss") -> Chart:
    """A baseline and the stages expanded from smaller models against training FLOPs; each of the latter once more with
    the training of its sources added (dashed), unless there are many. The legend says what the target cost."""
    colour_of, first = colours(run), comparisons[0]
    baseline_colour = "blue" if first.baseline.run else colour_of[first.baseline.stage]
    scratch = _line(first.curves.scratch, measure, baseline_colour, f"{first.baseline.stage}, from scratch", steep=True)
    lines = _with_cost(scratch, measure, first.target, first.scratch.flops)
    sources: dict[str, Line] = {}
    for one in comparisons:
        aim, name = one.target, one.stage
        label = f"{name}, grown within its run" if one.chain else f"{name}, expanded"
        line = _line(one.curves.expanded, measure, colour_of[name], label, steep=_lossy(one) or bool(one.chain))
        lines += _with_cost(line, measure, aim, one.given.flops, one.given.saving_percent)
        if one.source.flops and len(comparisons) < CROWDED:
            all_in = _shifted(line, one.source.flops, f"{name}, all-in")
            lines += _with_cost(all_in, measure, aim, one.all_in.flops, one.all_in.saving_percent)
            for source in one.curves.sources:
                style: dict[str, Any] = {"width": 1.2, "steep": source.points[0].flops == 0}
                colour = colour_of.get(source.stage, "grey")
                sources.setdefault(source.stage, _line(source.points, measure, colour, source.stage, **style))
    lines += _targets(comparisons, measure, end=max(line.x[-1] for line in lines if line.x))
    title = f"{run.title}: {MEASURES[measure]}, against training FLOPs, model {first.model}"
    return _against_flops(title, measure, [*lines, *sources.values()])


def _targets(comparisons: list[Savings], measure: str, end: float) -> list[Line]:
    """A line at each target of the measure, from 0 to `end` FLOPs."""
    values = sorted({one.target.value for one in comparisons if one.target.metric == measure})
    shown = [(value, SCALES[measure] * value) for value in values]
    return [Line([0, end], [y, y], "muted", f"target {decimal(value)}", ":", 1.4) for value, y in shown]


def _with_cost(line: Line, measure: str, aim: Target, cost: int | None, percent: float | None = None) -> list[Line]:
    """The line; where it reaches the target, also a dot there, and the cost in its label."""
    if cost is None or measure != aim.metric:
        return [line]
    words = flops(cost) if percent is None else f"{flops(cost)}, {saving(percent)}"
    dot = Line([cost], [SCALES[measure] * aim.value], line.colour, style="o")
    return [replace(line, label=f"{line.label}: {words}"), dot]


def uncompared(run: Run, measure: str = "loss") -> Chart:
    """Every training stage against its own training FLOPs, where nothing is compared; one that goes on with a schedule
    behind those before it."""
    colour_of, evaluated = colours(run), [stage for stage in run.stages if stage.evaluations]
    lines = []
    for stage in evaluated:
        before = sum(each.evaluations[-1].flops for each in _before(run, stage) if each.evaluations)
        line = _line(stage.evaluations, measure, colour_of[stage.stage], stage.stage, steep=True)
        lines.append(replace(line, x=[before + x for x in line.x]))
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
            lines[name] = _line(one.curves.expanded, "loss", colour, name, steep=_lossy(one) or bool(one.chain))
            if one.source.flops:
                lines[f"{name}, all-in"] = _shifted(lines[name], one.source.flops, None)
    return _against_flops("All runs: evaluation loss against training FLOPs", "loss", list(lines.values()))


def _line(points: list[Evaluation], measure: str, colour: str, label: str, **style: Any) -> Line:
    measured = [(point.flops, value) for point in points if (value := getattr(point, measure)) is not None]
    return Line([x for x, _ in measured], [SCALES[measure] * y for _, y in measured], colour, label, **style)


def _shifted(line: Line, cost: int, label: str | None) -> Line:
    """The line once more, dashed, after the training of its sources."""
    return replace(line, x=[x + cost for x in line.x], label=label, style="--", width=1.6)


def _lossy(one: Savings) -> bool:
    """Whether its curve begins far above its source's loss, because the method does not keep the function."""
    return one.expansion is not None and one.expansion.lossless is False


def _against_flops(title: str, measure: str, lines: list[Line]) -> Chart:
    """x is in FLOPs; the axis gets the prefix that suits it."""
    power, prefix = scale(max((x for line in lines for x in line.x), default=0))
    scaled = [replace(line, x=[x / 1000**power for x in line.x]) for line in lines]
    return Chart(title, f"training compute, {prefix}FLOPs", MEASURES[measure], scaled)


def training(run: Run) -> Chart:
    """Training loss against steps: as recorded (light) and smoothed; where an expanded stage's warm-up ends. A stage
    that goes on with a schedule stands behind the one before it."""
    colour_of, lines = colours(run), []
    lossy = {one.stage: _lossy(one) for one in run.comparisons}
    for stage in (stage for stage in run.stages if stage.training.smooth):
        steep = not stage.facts.get("origin") or lossy.get(stage.stage, False)
        style: dict[str, Any] = {"colour": colour_of[stage.stage], "steep": steep, "behind": _steps_before(run, stage)}
        lines.append(_series(stage.training.raw, width=0.9, alpha=0.3, **style))
        lines.append(_series(stage.training.smooth, label=stage.stage, **style))
    schedules = [stage.facts["schedule"] for stage in run.stages if stage.stage in lossy]
    ends = {schedule["warmup"] - schedule.get("begin", 0) for schedule in schedules}
    events = tuple((step, "end of an expanded model's warm-up") for step in sorted(ends) if step > 0)
    return Chart(f"{run.title}: training loss against steps", "step", "training loss, nats", lines, events)


def rates(run: Run) -> Chart:
    """Learning rate against steps, as recorded."""
    trained = sorted((stage for stage in run.stages if stage.training.rate), key=lambda stage: -stage.step)
    colour_of = colours(run)
    lines = [
        _series(stage.training.rate, _steps_before(run, stage), colour=colour_of[stage.stage], label=stage.stage)
        for stage in trained
    ]
    return Chart(f"{run.title}: learning rates against steps", "step", "learning rate", lines)


def _before(run: Run, stage: Stage) -> list[Stage]:
    """The trainings with whose schedule a stage goes on."""
    named, before = {each.stage: each for each in run.stages}, []
    while stage.facts.get("fingerprint", {}).get("stage", {}).get("schedule", {}).get("continue"):
        origin = named.get(str(stage.facts.get("origin")))
        while origin is not None and origin.kind != "train":
            origin = named.get(str(origin.facts.get("origin")))
        if origin is None:
            break
        before.append(stage := origin)
    return before


def _steps_before(run: Run, stage: Stage) -> int:
    return sum(each.step for each in _before(run, stage))


def _series(pairs: Series, behind: int = 0, **style: Any) -> Line:
    return Line([behind + step for step, _ in pairs], [value for _, value in pairs], **style)


def data_uri(chart: Drawn, palette: str) -> str:
    """The chart as the source of an image, so that its styles apply to nothing else on the page."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg(chart, palette)).decode('ascii')}"


def svg(chart: Drawn, palette: str) -> bytes:
    """The chart as a standalone SVG with a transparent background. Text stays text, in the reader's font."""
    colours, file = PALETTES[palette], io.BytesIO()
    style = STYLE | dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), colours["muted"])
    style |= {"text.color": colours["ink"], "axes.labelcolor": colours["ink"], "grid.color": colours["rule"]}
    with matplotlib.rc_context(style | {"svg.hashsalt": chart.title}):
        figure = Figure(figsize=(WIDTH, chart.height))
        chart.draw(figure.add_subplot(), colours)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _draw(axes: Axes, chart: Chart, colours: Mapping[str, str]) -> None:
    for line in chart.lines:
        style: dict[str, Any] = {"color": colours[line.colour], "linewidth": line.width, "alpha": line.alpha}
        order: dict[str, Any] = {"zorder": 2 + line.alpha, "clip_on": line.style not in DOTS}
        axes.plot(line.x, line.y, line.style, label=line.label, **style, **order)
    for x, meaning in chart.events:
        axes.axvline(x, color=colours["muted"], linewidth=1.4, linestyle=":", label=meaning)
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label, xlim=(0, None), ylim=settled(chart.lines))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    legend(axes)


def legend(axes: Axes) -> None:
    """Above the figure, each label once."""
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    columns = max(1, 100 // (6 + max(map(len, handles), default=0)))  # a row holds about 100 letters
    axes.legend(handles.values(), handles, loc="lower left", bbox_to_anchor=(0, 1.03), ncols=columns)


def settled(lines: list[Line]) -> tuple[float | None, float | None]:
    """Limits of the y axis: the values after steep beginnings, and a margin."""
    values = [y for line in lines for x, y in zip(line.x, line.y, strict=True) if x >= _begin(line)]
    if not values:
        return None, None
    margin = 0.05 * (max(values) - min(values) or abs(max(values)) or 1.0)
    return min(values) - margin, max(values) + margin


def _begin(line: Line) -> float:
    """Where a steep beginning ends."""
    return line.x[0] + SETTLED * (line.x[-1] - line.x[0]) if line.steep else -math.inf

"""The figures of a study, drawn from its results alone. Every seed is drawn."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pipeline.accounting.crossing import Metric
from pipeline.report.figures import MEASURES, SCALES, Chart, Line, legend
from pipeline.report.formatting import scale
from pipeline.studies.results import ArmResult, StudyResults, Summary

ARMS = ("orange", "green", "purple", "brown", "grey", "ink")
SCRATCH = ("baseline", "frontier")
"""Roles of arms that train the target model from scratch."""
STROKES = (("-", "--", "o"), ("-.", ":", "s"))
"""Of a line, of the one beside it, and of a dot: the next ones where the colours begin again."""
KINDS = {"given": "given the small model", "all_in": "all-in", "tuned": "all-in with tuning"}
COLOURS = {"given": "orange", "all_in": "blue", "tuned": "grey"}
HEIGHT = 0.22
"""Between the marks of one row, of the distance between two rows."""


@dataclass(frozen=True)
class Mark:
    """What was measured of one thing. low, high: of the mean's interval, None where there is none."""

    label: str
    colour: str
    dots: tuple[float, ...]
    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Look:
    """How an arm is drawn. line: of what is counted; beside: of the same, counted otherwise; dot: of a single value."""

    colour: str
    line: str = "-"
    beside: str = "--"
    dot: str = "o"


@dataclass(frozen=True)
class Rows:
    """A row for each name, with its marks below each other."""

    title: str
    x_label: str
    rows: tuple[tuple[str, tuple[Mark, ...]], ...]

    @property
    def height(self) -> float:
        return 1.3 + sum(0.35 + 0.25 * len(marks) for _, marks in self.rows)

    def draw(self, axes: Axes, colours: Mapping[str, str]) -> None:
        axes.axvline(0, color=colours["muted"], linewidth=1.2)
        for place, (_, marks) in enumerate(self.rows):
            for number, mark in enumerate(marks):
                self._mark(axes, mark, place + HEIGHT * (number - (len(marks) - 1) / 2), colours[mark.colour])
        axes.set(xlabel=self.x_label, yticks=range(len(self.rows)), ylim=(len(self.rows) - 0.4, -0.6))
        axes.set_yticklabels([name for name, _ in self.rows])
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        legend(axes)

    def _mark(self, axes: Axes, mark: Mark, y: float, colour: str) -> None:
        axes.plot(mark.dots, [y] * len(mark.dots), "o", color=colour, alpha=0.45, markersize=5)
        if mark.low is not None and mark.high is not None:
            axes.plot([mark.low, mark.high], [y, y], "-", color=colour, linewidth=2)
        axes.plot([mark.mean], [y], "D", color=colour, markersize=6, label=mark.label)


@dataclass(frozen=True)
class HeatMap:
    """A value for each pair of two settings. best: the place of the one that was chosen."""

    title: str
    x_label: str
    y_label: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    best: tuple[int, int] | None

    @property
    def height(self) -> float:
        return 1.0 + 0.5 * len(self.rows)

    def draw(self, axes: Axes, colours: Mapping[str, str]) -> None:
        known = [value for row in self.values for value in row if value is not None]
        least, most = min(known), max(known)
        for y, row in enumerate(self.values):
            for x, value in enumerate(row):
                if value is not None:
                    share = 1 - (value - least) / (most - least) if most > least else 1.0
                    axes.add_patch(_cell(x, y, colours["blue"], 0.12 + 0.68 * share))
                    weight = "bold" if (y, x) == self.best else "normal"
                    axes.text(x, y, f"{value:.4g}", ha="center", va="center", color=colours["ink"], weight=weight)
        axes.set(xlabel=self.x_label, ylabel=self.y_label, xlim=(-0.5, len(self.columns) - 0.5))
        axes.set(xticks=range(len(self.columns)), yticks=range(len(self.rows)), ylim=(len(self.rows) - 0.5, -0.5))
        axes.set_xticklabels(self.columns)
        axes.set_yticklabels(self.rows)
        axes.grid(visible=False)


def _cell(x: int, y: int, colour: str, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, color=colour, alpha=alpha, linewidth=0)


@dataclass(frozen=True)
class Across(Chart):
    """A chart whose x axis runs from worse to better, wherever it begins. backwards: the better is the smaller."""

    backwards: bool = False

    def draw(self, axes: Axes, colours: Mapping[str, str]) -> None:
        for line in self.lines:
            axes.plot(line.x, line.y, line.style, color=colours[line.colour], linewidth=line.width, label=line.label)
        axes.axhline(0, color=colours["muted"], linewidth=1.2)
        axes.set(xlabel=self.x_label, ylabel=self.y_label)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        if self.backwards:
            axes.invert_xaxis()
        legend(axes)


def looks(results: StudyResults) -> dict[str, Look]:
    """Of the arms: blue and sky from scratch; the others in their own, as far as colours times strokes reach."""
    scratch = {
        arm.name: Look("blue" if arm.role == "baseline" else "sky") for arm in results.arms if arm.role in SCRATCH
    }
    others = [arm.name for arm in results.arms if arm.role not in SCRATCH]
    unused = cycle(Look(colour, *strokes) for strokes in STROKES for colour in ARMS)
    return scratch | dict(zip(others, unused, strict=False))


def grown(results: StudyResults) -> list[ArmResult]:
    return [arm for arm in results.arms if arm.role == "arm" and arm.seeds]


def compared(results: StudyResults) -> list[ArmResult]:
    """What is compared with training from scratch: what grew, and what trains a smaller model by itself."""
    return [arm for arm in results.arms if arm.role not in SCRATCH and arm.seeds]


def savings(results: StudyResults) -> Rows:
    """The savings of all arms, by what they count."""
    rows = tuple((arm.name, tuple(_marks(arm))) for arm in compared(results))
    return Rows(f"{results.name}: FLOPs saved at the target", "saved, % of training from scratch", rows)


def _marks(arm: ArmResult) -> Iterator[Mark]:
    for key, words in KINDS.items():
        if key == "given" and arm.nothing_given:
            continue
        summary: Summary = getattr(arm, key)
        dots = tuple(value for one in arm.seeds if (value := getattr(one.savings, key)) is not None)
        if summary.sample:
            held = summary.sample
            yield Mark(words, COLOURS[key], dots, held.mean, held.low, held.high)


def curves(results: StudyResults, all_in: bool) -> Chart:
    """Every seed's curve against training FLOPs; all_in: behind the training of its sources."""
    metric: Metric = results.rule["metric"]
    look_of, lines = looks(results), []
    for arm in results.arms:
        for place, one in enumerate(arm.seeds):
            x = [float(point.flops + ((one.source or 0) if all_in else 0)) for point in one.curve]
            y = [SCALES[metric] * point.value for point in one.curve]
            label = arm.name if place == 0 else None
            look, steep = look_of[arm.name], one.source == 0
            lines.append(Line(x, y, look.colour, label, look.line, width=1.3, alpha=0.7, steep=steep))
    return _against_flops(results, "all-in" if all_in else "own", metric, lines)


def _against_flops(results: StudyResults, whose: str, metric: Metric, lines: Sequence[Line]) -> Chart:
    power, prefix = scale(max((x for line in lines for x in line.x), default=0))
    scaled = [Line([x / 1000**power for x in line.x], *_rest(line)) for line in lines]
    title = f"{results.name}: {MEASURES[metric]}, against {whose} training FLOPs, every seed"
    return Chart(title, f"{whose} training {prefix}FLOPs", MEASURES[metric], scaled)


def _rest(line: Line) -> tuple[Any, ...]:
    return line.y, line.colour, line.label, line.style, line.width, line.alpha, line.steep


def by_target(results: StudyResults) -> Across:
    """Mean savings at other targets than the one that is claimed."""
    metric: Metric = results.rule["metric"]
    look_of, lines = looks(results), []
    for arm in compared(results):
        x = [SCALES[metric] * each.target for each in arm.by_target]
        look = look_of[arm.name]
        all_in = Line(x, [each.all_in for each in arm.by_target], look.colour, arm.name, look.beside, 1.5)
        given = Line(x, [each.given for each in arm.by_target], look.colour, arm.name, look.line)
        lines += [all_in] if arm.nothing_given else [given, replace(all_in, label=None)]
    title = f"{results.name}: savings at other targets"
    return Across(title, f"target: {MEASURES[metric]}", "saved, %", lines, backwards=metric == "loss")


def equal_flops(results: StudyResults) -> Chart:
    """The ends of fully decayed runs against all that they cost; scratch of every horizon joined by its means."""
    metric: Metric = results.rule["metric"]
    look_of, lines = looks(results), []
    for arm in results.arms:
        ends = [(float(one.flops + (one.source or 0)), SCALES[metric] * one.final) for one in arm.seeds if one.complete]
        if ends:
            look = look_of[arm.name]
            lines.append(Line([x for x, _ in ends], [y for _, y in ends], look.colour, arm.name, look.dot))
    means = sorted(
        (sum(x for x, _ in ends) / len(ends), sum(y for _, y in ends) / len(ends))
        for arm in results.arms
        if arm.role in SCRATCH
        and (ends := [(float(one.flops), SCALES[metric] * one.final) for one in arm.seeds if one.complete])
    )
    lines.append(Line([x for x, _ in means], [y for _, y in means], "blue", "scratch of every horizon", "--", 1.5))
    return _against_flops(results, "all-in", metric, lines)


def starts(results: StudyResults) -> Rows | None:
    """What the last growth did to the metric before any training; None where nothing grew."""
    metric: Metric = results.rule["metric"]
    rows = []
    for arm in grown(results):
        jumps = [
            SCALES[metric] * (one.behind - one.before)
            for one in arm.seeds
            if one.before is not None and one.behind is not None
        ]
        if jumps:
            mark = Mark("behind the growth less before it", "orange", tuple(jumps), sum(jumps) / len(jumps))
            rows.append((arm.name, (mark,)))
    title = f"{results.name}: {MEASURES[metric]} right after the expansion"
    return Rows(title, f"change of the {MEASURES[metric]}", tuple(rows)) if rows else None


def heat_maps(results: StudyResults) -> list[HeatMap]:
    """Of every arm that was tuned by a grid of two settings."""
    return [found for arm in results.arms if (found := _heat_map(results, arm)) is not None]


def _heat_map(results: StudyResults, arm: ArmResult) -> HeatMap | None:
    """The last evaluation of each trial."""
    keys = list(dict.fromkeys(key for trial in arm.trials for key in trial.settings))
    if len(keys) != 2 or len(arm.trials) < 4:
        return None
    axes = [list(dict.fromkeys(str(trial.settings.get(key)) for trial in arm.trials)) for key in keys]
    cells = {tuple(str(trial.settings.get(key)) for key in keys): trial for trial in arm.trials}
    values = tuple(tuple(_final(cells.get((row, column))) for column in axes[1]) for row in axes[0])
    best = next((place for place, trial in _places(axes, cells) if trial and trial.chosen), None)
    title = f"{results.name}: {arm.name}, what trials end with on the validation half"
    return HeatMap(title, keys[1], keys[0], tuple(axes[1]), tuple(axes[0]), values, best)


def _final(trial: Any) -> float | None:
    return None if trial is None else trial.final


def _places(axes: list[list[str]], cells: Mapping[tuple[str, ...], Any]) -> Iterator[tuple[tuple[int, int], Any]]:
    for y, row in enumerate(axes[0]):
        for x, column in enumerate(axes[1]):
            yield (y, x), cells.get((row, column))

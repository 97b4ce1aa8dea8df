"""The report's figures, drawn from its data alone: what any reader of report.json could draw as well."""

from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pipeline.reporting import drawing
from pipeline.reporting.drawing import BLUE, BROWN, GREEN, GREY, INK, MUTED, ORANGE, PURPLE, SKY, Line
from pipeline.reporting.labels import Label, write
from pipeline.reporting.units import decimal, flops, saving, scale

SCRATCH, EXPANDED, OTHER = (BLUE, SKY), (ORANGE, PURPLE, BROWN, INK), (GREY, GREEN)
RUNS = (BLUE, ORANGE, GREEN, PURPLE, BROWN, SKY, GREY)
CROWDED = 3
"""From so many comparisons on, a figure leaves out what came before the expansions: the bars state it."""
MEASURES = {"loss": "evaluation loss, nats", "top1": "top-1 accuracy, %"}


def colours(run: dict) -> dict[str, str]:
    """A colour for each training stage, the same in all figures of the run: blue from scratch, warm expanded."""
    trained = [stage["stage"] for stage in run["stages"] if stage["kind"] == "train"]
    scratch = {one["baseline"]["stage"] for one in run["comparisons"] if one["baseline"]["run"] is None}
    expanded = {one["stage"] for one in run["comparisons"]}
    chosen = {}
    for members, palette in ((scratch, SCRATCH), (expanded, EXPANDED), ({*trained} - scratch - expanded, OTHER)):
        named = [stage for stage in trained if stage in members]
        chosen |= {stage: palette[index % len(palette)] for index, stage in enumerate(named)}
    return chosen


def compared(run: dict, comparisons: list[dict], measure: str = "loss") -> str:
    """One baseline, what was expanded, and (unless there are many) that once more behind its sources (dashed), against
    training FLOPs."""
    chosen, baseline = colours(run), comparisons[0]["baseline"]
    blue = BLUE if baseline["run"] else chosen[baseline["stage"]]
    points = comparisons[0]["curves"]["scratch"]
    lines = {"scratch": Line(*_points(points, measure), blue, "from scratch", steep=True)}
    marks = [_crossing(comparisons[0]["scratch"]["flops"], comparisons[0], (), blue)]
    for one in comparisons:
        colour, name = chosen[one["stage"]], one["stage"]
        x, y = _points(one["curves"]["expanded"], measure)
        expanded = Line(x, y, colour, f"{name}, expanded", steep=_lossy(one))
        lines[name] = expanded
        marks.append(_crossing(one["given"]["flops"], one, (saving(one["given"]["saving_percent"]),), colour))
        if len(comparisons) >= CROWDED:
            continue
        if cost := one["source"]["flops"]:
            lines[f"{name} all-in"] = _behind(expanded, cost, f"{name}, all-in", 1.6)
            marks.append(_crossing(one["all_in"]["flops"], one, (saving(one["all_in"]["saving_percent"]),), colour))
        for source in one["curves"]["sources"]:
            name, points = source["stage"], _points(source["points"], measure)
            lines.setdefault(name, Line(*points, chosen.get(name, GREY), name, "-", 1.2, steep=not points[0][0]))
    title = f"{run['title']}: {MEASURES[measure]}, against training FLOPs, model {comparisons[0]['model']}"
    return _against_flops(list(lines.values()), title, measure, [m for m in marks if m and measure == "loss"])


def _behind(line: Line, cost: float, label: str, width: float) -> Line:
    """The line once more, dashed, behind what its sources cost."""
    return replace(line, x=[x + cost for x in line.x], label=label, style="--", width=width)


def _lossy(one: dict) -> bool:
    """Whether its curve begins with the fall from what a lossy method left of the function."""
    return one["expansion"] is not None and one["expansion"]["lossless"] is False


def _crossing(amount: int | None, one: dict, texts: tuple[str, ...], colour: str) -> tuple | None:
    return None if amount is None else (amount, one["target"]["loss"], (flops(amount), *texts), colour)


def uncompared(run: dict, measure: str = "loss") -> str:
    """Every training stage against its own training FLOPs, where nothing is compared."""
    lines = [
        Line(*_points(stage["evaluations"], measure), colours(run)[stage["stage"]], stage["stage"], steep=True)
        for stage in run["stages"] if any(measure in point for point in stage["evaluations"])
    ]
    return _against_flops(lines, f"{run['title']}: {MEASURES[measure]}, against training FLOPs", measure, [])


def overlay(runs: list[dict]) -> str:
    """The comparisons of all runs: a colour for each run, from scratch dotted, all-in dashed."""
    lines: dict[str, Line] = {}
    for run, colour in zip(runs, RUNS * len(runs), strict=False):
        for one in run["comparisons"]:
            place = f"{one['baseline']['run'] or run['title']}: {one['baseline']['stage']}"
            points = _points(one["curves"]["scratch"], "loss")
            lines.setdefault(place, Line(*points, colour, place, ":", 1.8, steep=True))
            x, y = _points(one["curves"]["expanded"], "loss")
            name = f"{run['title']}: {one['stage']}"
            lines[name] = Line(x, y, colour, name, steep=_lossy(one))
            if cost := one["source"]["flops"]:
                lines[f"{name} all-in"] = _behind(lines[name], cost, "all-in", 1.4)
    return _against_flops(list(lines.values()), "All runs: evaluation loss against training FLOPs", "loss", [])


def _points(evaluations: list[dict], measure: str) -> tuple[list[float], list[float]]:
    known = [point for point in evaluations if measure in point]
    factor = 100 if measure == "top1" else 1
    return [point["flops"] for point in known], [factor * point[measure] for point in known]


def _against_flops(lines: list[Line], title: str, measure: str, marks: list[tuple]) -> str:
    """`lines` and `marks` have x in FLOPs; the axis gets the prefix that suits them."""
    power, prefix = scale(max((x for line in lines for x in line.x), default=0))
    unit = 1000**power
    figure, axes = drawing.blank(f"training compute, {prefix}FLOPs", MEASURES[measure])
    lines = [replace(line, x=[x / unit for x in line.x]) for line in lines]
    drawing.draw(axes, lines)
    axes.set_xlim(left=0)
    drawing.cut(axes, lines, room=0.26 if marks else 0.05)
    labels = [_target(axes, loss) for loss in sorted({mark[1] for mark in marks})]
    labels += [drawing.mark(axes, x / unit, *rest) for x, *rest in marks]
    write(axes, labels + _names(lines))
    return drawing.svg(figure, title)


def _target(axes: Axes, loss: float) -> Label:
    axes.axhline(loss, color=MUTED, linewidth=1.2, linestyle=(0, (2, 2)), zorder=2)
    return Label((f"target {decimal(loss)}",), ((0, loss),), ("lower right", "upper right"), MUTED)


def _names(lines: list[Line]) -> list[Label]:
    return [drawing.named(line) for line in lines if line.label and line.x]


def training(run: dict) -> str:
    """Training loss against steps: as recorded (light) and smoothed; where an expanded stage's warm-up ends."""
    chosen = colours(run)
    figure, axes = drawing.blank("step", "training loss, nats")
    lossy, lines = {one["stage"] for one in run["comparisons"] if _lossy(one)}, []
    for stage in (stage for stage in run["stages"] if stage["training"]["smooth"]):
        colour, record = chosen[stage["stage"]], stage["training"]
        steep = not stage["facts"].get("origin") or stage["stage"] in lossy
        lines.append(Line(*_columns(record["raw"]), colour, width=0.9, faint=True, steep=steep))
        lines.append(Line(*_columns(record["smooth"]), colour, stage["stage"], steep=steep))
    drawing.draw(axes, lines)
    axes.set_xlim(left=0)
    drawing.cut(axes, lines)
    expanded = {one["stage"] for one in run["comparisons"]}
    ends = {stage["facts"]["schedule"]["warmup"] for stage in run["stages"] if stage["stage"] in expanded}
    write(axes, [_warmup(axes, step) for step in sorted(ends - {0})] + _names(lines))
    return drawing.svg(figure, f"{run['title']}: training loss against steps")


def _warmup(axes: Axes, step: int) -> Label:
    axes.axvline(step, color=MUTED, linewidth=1.0, linestyle=(0, (2, 2)), zorder=2)
    low, high = axes.get_ylim()
    points = tuple((step, low + share * (high - low)) for share in (0.0, 0.85, 0.7))
    return Label(("warm-up ends",), points, ("upper right",), MUTED)


def rates(run: dict) -> str:
    """Learning rate against steps, as recorded."""
    chosen = colours(run)
    figure, axes = drawing.blank("step", "learning rate")
    trained = [stage for stage in run["stages"] if stage["training"]["rate"]]
    lines = [
        Line(*_columns(stage["training"]["rate"]), chosen[stage["stage"]], stage["stage"])
        for stage in sorted(trained, key=lambda stage: -stage["step"])
    ]
    drawing.draw(axes, lines)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter("{x:g}")
    write(axes, _names(lines))
    return drawing.svg(figure, f"{run['title']}: learning rates against steps")


def _columns(pairs: list[list]) -> tuple[list[float], list[float]]:
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

"""The page: what the data say, in the order in which people ask."""

from html import escape
from importlib.resources import files
from string import Template

from pipeline.reporting import details, expansions, figures
from pipeline.reporting.headline import Bar, bars, growth, statement, target
from pipeline.reporting.markup import Content, Markup, Number, code, element, figure, section, table
from pipeline.reporting.units import decimal, flops

TEMPLATE = Template(files("pipeline.reporting").joinpath("page.html").read_text(encoding="utf-8"))
NOTE = "One multiply-add is two FLOPs. report.json holds every number of this page, FLOPs as exact integers."
LONGEST = 58
"""Width of the longest bar, per cent of its row; the rest is for the words behind it."""
CAPTIONS = {
    "loss": "Evaluation loss against training FLOPs. Solid: what each model's own training cost. Dashed: the expanded "
            "model behind the training of its source (thin). Dots: where the target is reached. The steep beginning of "
            "curves from scratch, and of lossy expansions, is cut off.",
    "many": "Evaluation loss against training FLOPs of each model's own training; what its source cost is in the bars "
            "above. Dots: where the target is reached. The steep beginning of curves from scratch, and of lossy "
            "expansions, is cut off.",
    "top1": "Top-1 accuracy against training FLOPs, drawn in the same way.",
    "alone": "Each stage against its own training FLOPs.",
    "training": "Training loss: as recorded (light), and its running mean over 2 % of the steps. A spike where the "
                "expanded model's warm-up ends is expected; it recovers. The steep beginning of curves from scratch, "
                "and of lossy expansions, is cut off.",
    "rates": "Learning rates. LEMON keeps the peak of training from scratch and shortens the decay behind it.",
}


def render(report: dict) -> str:
    """The whole page, self-contained."""
    runs = report["runs"]
    title = f"FLOPs report: {', '.join(run['title'] for run in runs)}"
    subtitle = element("p", "What training cost, and what growing a small model saved.", kind="sub")
    parts = [element("h1", title), subtitle]
    if len(runs) > 1:
        parts += [_together(runs), *(part for run in runs for part in [element("h2", run["title"]), *_run(run)])]
    else:
        parts += _run(runs[0])
    command = element("p", "Made by"), element("pre", code(report["command"]))
    parts.append(element("footer", *command, element("p", NOTE, kind="note")))
    return TEMPLATE.substitute(title=escape(title), body="\n".join(part.html for part in parts))


def _together(runs: list[dict]) -> Markup:
    """All runs' results in one table and one figure."""
    rows = [[run["title"], *_result(one)] for run in runs for one in run["comparisons"]]
    if not rows:
        return Markup("")
    heads = ["run", "stage", "target loss", "from scratch", "given the small model", "saving", "all-in", "saving"]
    caption = "Evaluation loss of all runs: from scratch dotted, expanded solid, behind its source's training dashed."
    return section("All runs", table(heads, rows), figure(figures.overlay(runs), caption))


def _result(one: dict) -> list[Content]:
    cells: list[Content] = [one["stage"], Number(decimal(one["target"]["loss"])), _cost(one["scratch"]["flops"])]
    for way in ("given", "all_in"):
        share = one[way]["saving_percent"]
        cells += [_cost(one[way]["flops"]), Number("–" if share is None else f"{decimal(share, 1)} %")]
    return cells


def _cost(amount: int | None) -> Number:
    return Number("not reached") if amount is None else Number(flops(amount), f"{amount:,} FLOPs")


def _run(run: dict) -> list[Markup]:
    parts = []
    if run["unfinished"]:
        parts.append(element("p", f"Unfinished: {'; '.join(run['unfinished'])}.", kind="warning"))
    parts += [element("p", warning, kind="warning") for warning in run["warnings"]]
    for one in run["comparisons"]:
        title = f"Result: {one['stage']} against {one['baseline']['stage']}"
        words = element("p", statement(one), kind="lead"), _bars(one), _note(target(one) + growth(one))
        parts.append(section(title, *words))
    parts += [element("p", remark, kind="lead") for remark in run["remarks"]]
    parts += [_curves(run), _steps(run), details.ledger(run), expansions.continuity(run)]
    return [*parts, details.stages(run), details.speed(run), details.settings(run)]


def _note(text: str) -> Markup:
    return element("p", text, kind="note")


def _bars(one: dict) -> Markup:
    """The ways to the target as bars, longest to `LONGEST`."""
    rows = bars(one)
    longest = max((sum(cost for _, cost in bar.parts) for bar in rows), default=0)
    return element("div", *(cell for bar in rows for cell in _bar(bar, longest)), kind="bars")


def _bar(bar: Bar, longest: int) -> list[Markup]:
    parts = "".join(
        f'<i class="{kind}" style="width:{100 * cost / sum(cost for _, cost in bar.parts):.3f}%"></i>'
        for kind, cost in bar.parts if cost
    )
    width = LONGEST * sum(cost for _, cost in bar.parts) / longest if longest else 0
    drawn = Markup(f'<div class="bar" style="width:{width:.3f}%">{parts}</div>' if parts else "")
    verdict = element("b", bar.verdict) if bar.verdict else Markup("")
    words = element("span", bar.cost, " " if bar.verdict else "", verdict, kind="value")
    name = element("div", bar.name, element("small", bar.note), kind="name")
    return [name, element("div", drawn, words, kind="track")]


def _curves(run: dict) -> Markup:
    """Evaluation against training FLOPs, a figure for each baseline; for images also top-1."""
    measures = ["loss", "top1"] if any("top1" in e for s in run["stages"] for e in s["evaluations"]) else ["loss"]
    groups: dict[tuple, list[dict]] = {}
    for one in run["comparisons"]:
        groups.setdefault((one["baseline"]["run"], one["baseline"]["stage"]), []).append(one)
    drawn = [
        figure(figures.compared(run, group, measure), _caption(group, measure))
        for group in groups.values() for measure in measures
    ]
    if not drawn and any(stage["evaluations"] for stage in run["stages"]):
        drawn = [figure(figures.uncompared(run, measure), CAPTIONS["alone"]) for measure in measures]
    return section("Evaluation against training FLOPs", *drawn) if drawn else Markup("")


def _caption(group: list[dict], measure: str) -> str:
    return CAPTIONS["many" if measure == "loss" and len(group) >= figures.CROWDED else measure]


def _steps(run: dict) -> Markup:
    """Training loss and learning rates against steps."""
    if not any(stage["training"]["smooth"] for stage in run["stages"]):
        return Markup("")
    drawn = figure(figures.training(run), CAPTIONS["training"]), figure(figures.rates(run), CAPTIONS["rates"])
    return section("Training by steps", *drawn)

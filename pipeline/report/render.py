"""The report for readers: a page that needs no network, the data beside it, a few lines for the terminal."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.accounting.savings import Savings
from pipeline.errors import writing_to
from pipeline.records.run_folder import write_json, write_text
from pipeline.report import figures, formatting, headline
from pipeline.report.content import Report, Run


def render(report: Report) -> str:
    """The whole page, self-contained: every text of a report is escaped by the templates' autoescape."""
    pages = Environment(loader=PackageLoader("pipeline.report"), autoescape=True, undefined=StrictUndefined)
    pages.trim_blocks = pages.lstrip_blocks = True
    formats = (
        "count",
        "decimal",
        "duration",
        "flops",
        "milliseconds",
        "percent",
        "rate",
        "scientific",
        "settings",
        "signed",
    )
    pages.filters |= {name: getattr(formatting, name) for name in formats}
    pages.filters |= {"source": figures.data_uri, "pairs": pairs}
    pages.globals |= {"figures": figures, "headline": headline, "evaluation_figures": evaluation_figures}
    return pages.get_template("page.html").render(report=report, comparisons=pairs(report.runs, "comparisons"))


def pairs(owners: list[Any], name: str) -> list[tuple[Any, Any]]:
    """Each owner beside each member of its list `name`."""
    return [(owner, member) for owner in owners for member in getattr(owner, name)]


def evaluation_figures(run: Run) -> list[tuple[figures.Chart, str]]:
    """Evaluation against training FLOPs, with the name of its caption, for each baseline; for images also top-1."""
    points = [point for stage in run.stages for point in stage.evaluations]
    measures = ["loss", "top1"] if any(point.top1 is not None for point in points) else ["loss"]
    groups: dict[tuple[str | None, str], list[Savings]] = {}
    for one in run.comparisons:
        groups.setdefault((one.baseline.run, one.baseline.stage), []).append(one)
    if not groups and points:
        return [(figures.uncompared(run, measure), "alone") for measure in measures]
    return [
        (figures.compared(run, group, measure), "crowded" if len(group) >= figures.CROWDED else measure)
        for group in groups.values()
        for measure in measures
    ]


def write(report: Report, folder: Path) -> Path:
    """Write report.html and report.json into `folder`; returns the page's path. Raises UserError."""
    page, content = folder / "report.html", render(report)
    with writing_to(folder, "choose another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "report.json", report.model_dump())
        write_text(page, content)
    return page


def summary(report: Report, page: Path | None = None) -> str:
    """The headline for the terminal. page: where `write` put it; default, the first run's folder."""
    lines = [line for run in report.runs for line in _lines(run)]
    page = page or Path(report.runs[0].folder) / "report.html"
    return "\n".join([*lines, f"report: {page}", f"data:   {page.with_suffix('.json')}"])


def _lines(run: Run) -> list[str]:
    lines = [run.title]
    if run.unfinished:
        lines.append(f"  unfinished: {'; '.join(run.unfinished)}")
    lines += [f"  {text}" for text in (*run.warnings, *run.remarks)]
    for one in run.comparisons:
        lines += [f"  {headline.statement(one)}", f"  {headline.target(one)}"]
        lines += [f"    {bar.name:<22}  {bar.cost:<14}  {bar.verdict or ''}".rstrip() for bar in headline.bars(one)]
    return [*lines, *(f"  {headline.time_spent(one, run.events)}" for one in run.wall_time)]

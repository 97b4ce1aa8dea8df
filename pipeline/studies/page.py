"""The results for readers: study.html, which needs no network, study.json, study.csv, a few lines for the terminal."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from pipeline.checkpoints.serialization.amounts import amount
from pipeline.errors import writing_to
from pipeline.records.run_folder import write_json, write_text
from pipeline.report import figures as shared
from pipeline.report import formatting
from pipeline.report.render import pairs
from pipeline.studies import figures, words
from pipeline.studies.results import ArmResult, Savings, SeedResult, StudyResults

NAME = "study"
COLUMNS = (
    "complete",
    "final",
    "target",
    "flops",
    "source",
    "given",
    "all_in",
    "scratch",
    "seconds",
    "memory",
    "before",
    "behind",
)
"""Of study.csv, behind arm and seed, and before the savings."""


class _Figures:
    """What templates call figures: those of a study, and the palettes of all pages."""

    PALETTES = shared.PALETTES

    def __getattr__(self, name: str) -> object:
        return getattr(figures, name)


def render(results: StudyResults) -> str:
    """The whole page, self-contained: every text is escaped by the templates' autoescape."""
    loader = ChoiceLoader([PackageLoader("pipeline.studies"), PackageLoader("pipeline.report")])
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {name: getattr(formatting, name) for name in ("decimal", "flops", "signed")}
    pages.filters |= {"source": shared.data_uri, "pairs": pairs, "amount": amount}
    pages.globals |= {"figures": _Figures(), "words": words}
    return pages.get_template("study.html").render(results=results)


def write(results: StudyResults, folder: Path) -> Path:
    """Write all three files; returns the page's path. Raises UserError."""
    page, content = folder / f"{NAME}.html", render(results)
    with writing_to(folder, "choose another folder=…"):
        write_json(folder / f"{NAME}.json", results.model_dump(mode="json"))
        write_text(folder / f"{NAME}.csv", table(results))
        write_text(page, content)
    return page


def table(results: StudyResults) -> str:
    """A row for each arm and seed, as CSV."""
    file = io.StringIO()
    rows = [_row(arm, one) for arm in results.arms for one in arm.seeds]
    names = ["arm", "seed", *COLUMNS, *(f"saved_{key}_percent" for key in Savings.model_fields)]
    writer = csv.DictWriter(file, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _row(arm: ArmResult, one: SeedResult) -> dict[str, object]:
    savings = {f"saved_{key}_percent": value for key, value in one.savings.model_dump().items()}
    return {"arm": arm.name, "seed": one.seed, **{key: getattr(one, key) for key in COLUMNS}, **savings}


def summary(results: StudyResults, page: Path) -> Iterator[str]:
    """Lines for the terminal."""
    yield f"{results.name}: {words.spent(results)}"
    if results.unfinished:
        yield f"  unfinished: {len(results.unfinished)} stages, such as {results.unfinished[0]}"
    yield from (f"  {sentence}" for sentence in words.statements(results))
    yield from (f"  note: {sentence}" for sentence in words.doubts(results))
    yield f"study:  {page}"
    yield f"data:   {page.with_suffix('.json')}, {page.with_suffix('.csv')}"

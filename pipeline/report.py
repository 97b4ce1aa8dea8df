"""`lemon report`: what training cost and what growing saved, as one page and as data.

`build` reads run folders and computes everything; `write` shows it. The page needs no network: its figures, fonts
and styles are inside it.
"""

import math
import shlex
from pathlib import Path

from pipeline.errors import UserError
from pipeline.folders import write_json
from pipeline.reporting import tables
from pipeline.reporting.compare import compare_runs
from pipeline.reporting.headline import bars, statement
from pipeline.reporting.headline import target as target_words
from pipeline.reporting.page import render
from pipeline.reporting.read import Run, read_runs


def build(runs: list[Path], *, target: float | None = None) -> dict:
    """The content of report.json: pure data, everything the page shows; FLOPs, samples and tokens are exact integers.

    `target`: the evaluation loss to compare at, in nats; None: the final one of each from-scratch baseline. Raises
    UserError for a folder that holds no run, a damaged file, or an impossible target.
    """
    if not runs:
        raise UserError("no run folder given; name one or several, such as: lemon report runs/NAME")
    if target is not None and not (math.isfinite(target) and target > 0):
        raise UserError(f"--target {target}: a target is an evaluation loss above 0, such as 3.5")
    read = read_runs(runs)
    compared = compare_runs(read, target)
    return {
        "format": 1,
        "command": _command(runs, target),
        "runs": [_content(run, *result) for run, result in zip(read, compared, strict=True)],
    }


def _command(runs: list[Path], target: float | None) -> str:
    return shlex.join(["lemon", "report", *map(str, runs), *(["--target", str(target)] if target is not None else [])])


def _content(run: Run, comparisons: list[dict], remarks: list[str]) -> dict:
    stages = tables.stages(run)
    return {
        "title": run.title,
        "folder": str(run.folder),
        "kind": run.recipe["kind"],
        "unigram_entropy": run.data.get("unigram_entropy"),
        "unfinished": tables.unfinished(run),
        "warnings": tables.warnings(stages),
        "comparisons": comparisons,
        "remarks": remarks,
        "stages": stages,
        "ledger": tables.ledger(run),
        "continuity": tables.continuity(run),
        "speed": tables.speed(run),
        "models": tables.models(run),
    }


def write(report: dict, folder: Path) -> Path:
    """Write report.html and report.json into `folder`; returns the page's path. Raises UserError."""
    folder = Path(folder)
    page = folder / "report.html"
    content = render(report)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "report.json", report)
        page.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot write the report there ({error.strerror}); choose another --out") from error
    return page


def summary(report: dict, page: Path | None = None) -> str:
    """The headline for the terminal. `page`: where `write` put it; default, the first run's folder."""
    lines = [line for run in report["runs"] for line in _lines(run)]
    page = page or Path(report["runs"][0]["folder"]) / "report.html"
    return "\n".join([*lines, f"report: {page}", f"data:   {page.with_suffix('.json')}"])


def _lines(run: dict) -> list[str]:
    lines = [run["title"]]
    if run["unfinished"]:
        lines.append(f"  unfinished: {'; '.join(run['unfinished'])}")
    lines += [f"  {text}" for text in (*run["warnings"], *run["remarks"])]
    for one in run["comparisons"]:
        lines += [f"  {statement(one)}", f"  {target_words(one)}"]
        lines += [f"    {bar.name:<22}  {bar.cost:<14}  {bar.verdict}".rstrip() for bar in bars(one)]
    return lines

"""`lemon report`."""

import argparse
from typing import Literal

from pipeline.cli.arguments import Commands, path


def add_parsers(commands: Commands) -> None:
    text = "write report.html and report.json for one or several runs"
    report = commands.add_parser("report", help=text, description=text)
    report.add_argument("runs", nargs="+", type=path, metavar="RUN", help="run folders, such as runs/quickstart-bert")
    report.add_argument("--out", type=path, help="folder to write to (default: the first run's)")
    report.add_argument(
        "--target",
        type=_target,
        help="what to compare at: a number, 'lowest' (the baseline's best, as if it had been stopped there) or 'final' "
        "(what it ends with; the default, where no 'stop' has ended the stage)",
    )
    report.add_argument(
        "--baseline", metavar="STAGE", help="stage from scratch (default: as the config says, or the best)"
    )
    report.add_argument(
        "--metric",
        choices=("loss", "top1", "accuracy"),
        default="loss",
        help="what is compared: the evaluation loss, or top-1 accuracy from 0 to 1 (accuracy is the same)",
    )
    report.set_defaults(handler=_report)


def _target(text: str) -> float | str:
    if text in ("final", "lowest"):
        return text
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no number, and neither 'final' nor 'lowest'") from error


def _report(options: argparse.Namespace) -> None:
    from pipeline import report

    metric: Literal["loss", "top1"] = "loss" if options.metric == "loss" else "top1"
    content = report.build(options.runs, target=options.target, baseline=options.baseline, metric=metric)
    page = report.write(content, options.out or options.runs[0])
    print(report.summary(content, page))

"""`lemon report`."""

import argparse

from pipeline.cli.arguments import Commands, path


def add_parsers(commands: Commands) -> None:
    text = "write report.html and report.json for one or several runs"
    report = commands.add_parser("report", help=text, description=text)
    report.add_argument("runs", nargs="+", type=path, metavar="RUN", help="run folders, such as runs/quickstart-bert")
    report.add_argument("--out", type=path, help="folder to write to (default: the first run's)")
    report.add_argument(
        "--target", type=float, help="target loss (default: the from-scratch run's final evaluation loss)"
    )
    report.set_defaults(handler=_report)


def _report(options: argparse.Namespace) -> None:
    from pipeline import report

    content = report.build(options.runs, target=options.target)
    page = report.write(content, options.out or options.runs[0])
    print(report.summary(content, page))

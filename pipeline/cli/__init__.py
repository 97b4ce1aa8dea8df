"""The command line: `lemon` = `python -m pipeline`, a thin layer over the Python API.

A command's name finds its file: `run prepare train` in run_commands, `plan expand verify` in expansion_commands,
`inspect check diff reshard export` in checkpoint_commands, `report` in report_commands, `doctor` in doctor_command,
`profile` in profile_command, `pilot` in pilot_command, `study` in study_command, `flops` in flops_command. Bad input
ends with one line and exit code 2. Nothing heavy is imported before it is needed.
"""

import argparse
import os
import warnings

from pipeline import __version__
from pipeline.cli import (
    checkpoint_commands,
    doctor_command,
    expansion_commands,
    flops_command,
    pilot_command,
    profile_command,
    report_commands,
    run_commands,
    study_command,
)
from pipeline.cli.arguments import Parser, add_local_rank
from pipeline.cli.output import exit_code, messages_printed, print_whatever_comes

EPILOG = """examples:
  lemon run configs/quickstart/bert.yaml                        the whole chain: prepare, train, expand, train, report
  lemon run configs/quickstart/bert.yaml stages.small.batch=32  any key of the config can be overridden
  lemon run configs/quickstart/bert.yaml --dry-run              what it would do and need; nothing is written
  lemon train configs/quickstart/bert.yaml --stage small        one stage of it, a training or an expansion
  lemon expand --source runs/quickstart-bert/small --target configs/quickstart/bert.yaml:large --out grown
  lemon plan --source bert-base --target large.json             what that would do, and what it needs
  lemon verify bert-base grown                                  whether both compute the same function
  lemon inspect runs/quickstart-bert/large                      what a checkpoint is
  lemon reshard runs/quickstart-bert/large --out eight --world-size 8
  lemon export runs/quickstart-bert/large --out model           a Hugging Face folder with a model card
  lemon report runs/quickstart-bert                             report.html and report.json
  lemon profile configs/quickstart/bert.yaml --stage small      where the time of a training step goes
  lemon pilot configs/growth/in-mid-run-bert.yaml --stage none-grown-at-80   when to grow, at the latest
  lemon flops bert-base/config.json --sequence-length 512       what a model or a run costs, from its config alone
  lemon study configs/studies/bert.yaml --dry-run               what a comparison with tuning and seeds would cost
  lemon doctor                                                  whether this machine can train
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each parsed command carries its `handler`."""
    parser = Parser(
        prog="lemon",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Pretrain a small Transformer, expand it without changing its function, go on training, "
        "account for every FLOP.",
    )
    parser.add_argument("--version", action="version", version=f"lemon {__version__}")
    add_local_rank(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (
        run_commands,
        expansion_commands,
        checkpoint_commands,
        report_commands,
        doctor_command,
        profile_command,
        pilot_command,
        flops_command,
        study_command,
    ):
        group.add_parsers(commands)
    for command in commands.choices.values():
        command.add_argument("-q", "--quiet", action="store_true", help="print results, warnings and errors only")
        command.add_argument(
            "-v",
            "--verbose",
            action="store_true",
            help="print details too: files read and written, layouts, drift by layer, times",
        )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, 1 for a verification that failed or a machine that is unfit, 2 for bad
    input, 75 for what nobody did wrong (a worker that was killed, a hang), 85 for a training that was asked to stop and
    has saved."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    print_whatever_comes()
    options = _parse(arguments)
    stream = "stderr" if getattr(options, "json", False) else "stdout"
    with messages_printed(quiet=options.quiet, verbose=options.verbose, stream=stream):
        return exit_code(lambda: options.handler(options))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    """argparse does not take overrides behind options; people write them there."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if any(text.startswith("-") or "=" not in text for text in rest) or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options

"""The command line: `lemon` = `python -m pipeline`.

Bad input ends with one line and exit code 2; nothing heavy is imported before it is needed.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

from pipeline import __version__, config
from pipeline.cli import offline
from pipeline.errors import UserError
from pipeline.training import launcher
from pipeline.training.launcher import Nodes

EPILOG = """examples:
  lemon run configs/quickstart/bert.yaml                        the whole chain: prepare, train, expand, train, report
  lemon run configs/quickstart/bert.yaml stages.small.batch=32  any key of the config can be overridden
  lemon train configs/quickstart/bert.yaml --stage small        one stage of it
  lemon expand --source runs/quickstart-bert/small --target configs/quickstart/bert.yaml:large --out grown
  lemon plan --source bert-base --target large.json             what that would do, and what it needs
  lemon verify bert-base grown                                  whether both compute the same function
  lemon inspect runs/quickstart-bert/large                      what a checkpoint is
  lemon reshard runs/quickstart-bert/large --out eight --world-size 8
  lemon export runs/quickstart-bert/large --out model           a Hugging Face folder with a model card
  lemon report runs/quickstart-bert                             report.html and report.json
"""


def build_parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="lemon",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Pretrain a small Transformer, expand it without changing its function, go on training, account for every FLOP.",
    )
    top.add_argument("--version", action="version", version=f"lemon {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _run_parsers(commands)
    offline.add_parsers(commands)
    report = commands.add_parser("report", help="write report.html and report.json for one or several runs")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, such as runs/quickstart-bert")
    report.add_argument("--out", type=Path, help="folder to write to (default: the first run's)")
    report.add_argument(
        "--target", type=float, help="target loss (default: the from-scratch run's final evaluation loss)"
    )
    return top


def _run_parsers(commands: argparse._SubParsersAction) -> None:
    helps = {
        "run": "run every stage of a config; finished stages are skipped, an interrupted one resumes",
        "prepare": "tokenize and pack the text, or store the images, of a config",
        "train": "run one training stage (also the entry point of workers under torchrun or Slurm)",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "config", type=Path, metavar="CONFIG", help="a YAML config, such as configs/quickstart/bert.yaml"
        )
        command.add_argument(
            "overrides", nargs="*", metavar="key=value", help="dotted overrides; stages by name: stages.small.batch=32"
        )
        if name != "run":
            command.add_argument(
                "--stage",
                help="which stage"
                + (" (default: the only one)" if name == "train" else " the data are for: all share them"),
            )
        if name != "prepare":
            command.add_argument("--nodes", type=int, default=1, help="nodes that run this same command (default 1)")
            command.add_argument("--node-rank", type=int, default=0, help="this node's number, from 0")
            command.add_argument("--master-addr", default="127.0.0.1", help="address of node 0")
            command.add_argument("--master-port", type=int, default=29500, help="a free port on node 0")


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, 1 for a verification that failed, 2 for bad input."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    options = _parse(arguments)
    if options.command != "report":
        _settle()
    try:
        return COMMANDS[options.command](options) or 0
    except UserError as error:
        print(f"lemon: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lemon: stopped; run the command again to resume", file=sys.stderr)
        return 130


def _settle() -> None:
    from pipeline.training import hardware

    hardware.settle()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    """argparse does not take overrides behind options; people write them there."""
    top = build_parser()
    options, rest = top.parse_known_args(arguments)
    if any(text.startswith("-") or "=" not in text for text in rest) or (rest and not hasattr(options, "overrides")):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def _nodes(options: argparse.Namespace) -> Nodes:
    return Nodes(options.nodes, options.node_rank, options.master_addr, options.master_port)


def _run(options: argparse.Namespace) -> None:
    from pipeline.runs import run

    run.run(config.load(options.config, options.overrides), _nodes(options))


def _prepare(options: argparse.Namespace) -> None:
    from pipeline.runs import run

    loaded = config.load(options.config, options.overrides)
    if options.stage:
        loaded.stage(options.stage)
    run.prepare_alone(loaded)


def _train(options: argparse.Namespace) -> None:
    from pipeline.runs import run

    loaded = config.load(options.config, options.overrides)
    name = options.stage or _only_stage(loaded)
    if launcher.is_worker():
        _work(loaded, name)
    else:
        run.stage_alone(loaded, name, _nodes(options))


def _only_stage(loaded: config.Config) -> str:
    names = [stage.name for stage in loaded.stages if stage.kind == "train"]
    if len(names) != 1:
        raise UserError(
            f"config '{loaded.name}' has {len(names)} training stages; choose one with --stage: {', '.join(names)}"
        )
    return names[0]


def _work(loaded: config.Config, name: str) -> None:
    loaded.path.mkdir(parents=True, exist_ok=True)
    held = launcher.become_worker(loaded.path)
    try:
        from pipeline.config import fingerprint
        from pipeline.training import engine, loop

        fingerprint.require_same(loaded, loaded.stage(name))  # under plain torchrun nobody did it before
        loop.run(loaded, loaded.stage(name), engine.join())
        engine.leave()
    except BaseException as error:
        launcher.tell_failure(error)
        raise
    finally:
        del held


def _report(options: argparse.Namespace) -> None:
    from pipeline.runs import run

    run.report(options.runs, options.out, options.target)


COMMANDS = {"run": _run, "prepare": _prepare, "train": _train, "report": _report, **offline.COMMANDS}

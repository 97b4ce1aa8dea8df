"""The command line: `lemon` = `python -m pipeline`.

Bad input ends with one line and exit code 2; nothing heavy is imported before it is needed.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

from pipeline import __version__, config, launcher
from pipeline.errors import UserError
from pipeline.launcher import Nodes

EPILOG = """examples:
  lemon run configs/quickstart/bert.yaml                        the whole chain: prepare, train, expand, train, report
  lemon run configs/quickstart/bert.yaml stages.small.batch=32  any key of the config can be overridden
  lemon train configs/quickstart/bert.yaml --stage small        one stage of it
  lemon expand --source runs/quickstart-bert/small --target configs/quickstart/bert.yaml:large --out grown
  lemon plan --source bert-base --target large.json             what that would do, and what it needs
  lemon verify bert-base grown                                  whether both compute the same function
  lemon report runs/quickstart-bert                             report.html and report.json
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="lemon", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Pretrain a small Transformer, expand it without changing its function, go on training, account for every FLOP.",
    )
    top.add_argument("--version", action="version", version=f"lemon {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _run_parsers(commands)
    _offline_parsers(commands)
    report = commands.add_parser("report", help="write report.html and report.json for one or several runs")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, such as runs/quickstart-bert")
    report.add_argument("--out", type=Path, help="folder to write to (default: the first run's)")
    report.add_argument("--target", type=float, help="target loss (default: the from-scratch run's final evaluation loss)")
    return top


def _run_parsers(commands: argparse._SubParsersAction) -> None:
    helps = {
        "run": "run every stage of a config; finished stages are skipped, an interrupted one resumes",
        "prepare": "tokenize and pack the text, or store the images, of a config",
        "train": "run one training stage (also the entry point of workers under torchrun or Slurm)",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("config", type=Path, metavar="CONFIG", help="a YAML config, such as configs/quickstart/bert.yaml")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides; stages by name: stages.small.batch=32")
        if name != "run":
            command.add_argument("--stage", help="which stage" + (" (default: the only one)" if name == "train" else " the data are for: all share them"))
        if name != "prepare":
            command.add_argument("--nodes", type=int, default=1, help="nodes that run this same command (default 1)")
            command.add_argument("--node-rank", type=int, default=0, help="this node's number, from 0")
            command.add_argument("--master-addr", default="127.0.0.1", help="address of node 0")
            command.add_argument("--master-port", type=int, default=29500, help="a free port on node 0")


def _offline_parsers(commands: argparse._SubParsersAction) -> None:
    text = "say what an expansion would do, and what it needs; no tensor is read"
    command = commands.add_parser("plan", help=text, description=text)
    _expansion_options(command)
    command.add_argument("--save", type=Path, default=Path("plan.json"), help="where the whole plan goes (default plan.json)")
    text = "expand a checkpoint to a larger model that computes the same function"
    command = commands.add_parser("expand", help=text, description=text)
    _expansion_options(command)
    command.add_argument("--out", required=True, type=Path, help="the checkpoint folder to create")
    text = "measure whether a large model computes a small one's function; exit code 1 when it does not"
    command = commands.add_parser("verify", help=text, description=text)
    command.add_argument("small", type=Path, metavar="SMALL", help="the source: a run's stage, a checkpoint folder, a Hugging Face folder")
    command.add_argument("large", type=Path, metavar="LARGE", help="what grew from it")
    command.add_argument("--json", action="store_true", help="print the measurements as JSON")


def _expansion_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--source", required=True, type=Path, help="a run's stage, a checkpoint folder, one tag in it, or a Hugging Face folder")
    command.add_argument("--source-config", type=Path, help="the source's config.json, where the checkpoint holds none")
    command.add_argument("--target", required=True, help="CONFIG.yaml:MODEL, a Hugging Face config.json, or a folder with one")
    command.add_argument("--method", default="lemon", help="lemon (default, lossless), fpi, net2net, aki, stack, interpolate, or random (from scratch)")
    command.add_argument("--optimizer-state", default="reset", choices=["reset", "grow"], help="fresh AdamW (default), or grow both moments")
    command.add_argument("--format", choices=["zero", "universal", "huggingface"], help="layout of the result (default: huggingface for such a source, else zero)")
    command.add_argument("--zero-stage", type=int, choices=[1, 2, 3], help="of --format zero (default 1)")
    command.add_argument("--world-size", type=_count, help="of --format zero: ranks that will load it (default 2)")
    command.add_argument("--bf16", action="store_true", help="of --format zero: the engine will train in bf16 (its file names differ)")
    command.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of --format huggingface: of the stored weights (default float32)")
    command.add_argument("--depth", default="zero", choices=["zero", "cancel"], help="how new layers start (default zero)")
    command.add_argument("--placement", default="even", choices=["even", "top"], help="where new layers stand (default even)")
    command.add_argument("--noise", type=_scale, default=1.0, help="scale of the symmetry-breaking noise (default 1)")
    command.add_argument("--seed", type=int, default=0, help="of the noise and of what starts fresh (default 0)")


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _scale(text: str) -> float:
    if not 0 <= (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not a number from 0")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, 1 for a verification that failed, 2 for bad input."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    options = _parse(arguments)
    if options.command in ("run", "prepare", "train", "plan", "expand", "verify"):
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
    from pipeline import hardware

    hardware.settle()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    """argparse does not take overrides behind options; people write them there."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if any(text.startswith("-") or "=" not in text for text in rest) or (rest and not hasattr(options, "overrides")):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def _nodes(options: argparse.Namespace) -> Nodes:
    return Nodes(options.nodes, options.node_rank, options.master_addr, options.master_port)


def _run(options: argparse.Namespace) -> None:
    from pipeline import run

    run.run(config.load(options.config, options.overrides), _nodes(options))


def _prepare(options: argparse.Namespace) -> None:
    from pipeline import run

    loaded = config.load(options.config, options.overrides)
    if options.stage:
        loaded.stage(options.stage)
    run.prepare_alone(loaded)


def _train(options: argparse.Namespace) -> None:
    from pipeline import run

    loaded = config.load(options.config, options.overrides)
    name = options.stage or _only_stage(loaded)
    if launcher.is_worker():
        _work(loaded, name)
    else:
        run.stage_alone(loaded, name, _nodes(options))


def _only_stage(loaded: config.Config) -> str:
    names = [stage.name for stage in loaded.stages if stage.kind == "train"]
    if len(names) != 1:
        raise UserError(f"config '{loaded.name}' has {len(names)} training stages; choose one with --stage: {', '.join(names)}")
    return names[0]


def _work(loaded: config.Config, name: str) -> None:
    loaded.path.mkdir(parents=True, exist_ok=True)
    held = launcher.become_worker(loaded.path)
    try:
        from pipeline import check, engine, train

        check.same_settings(loaded, loaded.stage(name))  # under plain torchrun nobody did it before
        train.run(loaded, loaded.stage(name), engine.join())
        engine.leave()
    except BaseException as error:
        launcher.tell_failure(error)
        raise
    finally:
        del held


def _plan(options: argparse.Namespace) -> None:
    from pipeline import folders, outlook

    job = _job(options)
    content = outlook.outlook(job)
    outlook.show(job, content, _console())
    folders.write_json(options.save, content)
    print(f"plan: wrote {options.save}")


def _expand(options: argparse.Namespace) -> None:
    from pipeline import expand

    expand.carry_out(_job(options), options.out)
    print(f"expand: wrote {options.out}")


def _form(options: argparse.Namespace, default: str):
    """The layout asked for; options of one layout choose it, and contradict another."""
    from pipeline.checkpoints import Format

    native = options.zero_stage or options.world_size or options.bf16
    layout = options.format or ("zero" if native else "huggingface" if options.dtype else default)
    if native and layout != "zero":
        raise UserError(f"--zero-stage, --world-size and --bf16 belong to --format zero, not to {layout}; leave them out")
    if options.dtype and layout != "huggingface":
        raise UserError(f"--dtype {options.dtype} belongs to --format huggingface; {layout} checkpoints hold float32, and --bf16 says how the engine trains")
    return Format(layout, options.zero_stage or 1, options.world_size or 2, options.bf16, options.dtype or "float32")


def _job(options: argparse.Namespace):
    from pipeline import checkpoints, expand, targets
    from pipeline.growth.method import Options

    form = _form(options, checkpoints.default_layout(options.source))
    chosen = Options(options.method, options.depth, options.placement, options.noise, options.seed)
    target = targets.find(options.target, options.source, options.source_config)
    return expand.plan(options.source, target, chosen, form, options.source_config, keeps=options.optimizer_state == "grow")


def _verify(options: argparse.Namespace) -> int:
    import json

    from pipeline import comparison

    found, chosen = comparison.compare(options.small, options.large)
    if options.json:
        print(json.dumps({"small": str(options.small), "large": str(options.large), "method": chosen.method, **found.as_json()}, indent=2))
    else:
        comparison.show(found, chosen, _console())
    return 0 if found.lossless else 1


def _console():
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200)


def _report(options: argparse.Namespace) -> None:
    from pipeline import run

    run.report(options.runs, options.out, options.target)


COMMANDS = {"run": _run, "prepare": _prepare, "train": _train, "plan": _plan, "expand": _expand, "verify": _verify, "report": _report}

if __name__ == "__main__":
    sys.exit(main())

"""The offline commands: what they take, and which part does the work. Nothing heavy is imported before it is needed."""

import argparse
import sys
from pathlib import Path

from pipeline.records.processes import WORKERS, huge_pages


def add_parsers(commands: argparse._SubParsersAction) -> None:
    text = "say what an expansion would do, and what it needs; no tensor is read"
    command = commands.add_parser("plan", help=text, description=text)
    _expansion_options(command)
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="write the whole plan there, as JSON (default: it is printed only)"
    )
    text = "expand a checkpoint to a larger model that computes the same function"
    command = commands.add_parser("expand", help=text, description=text)
    _expansion_options(command)
    command.add_argument("--out", required=True, type=Path, help="the checkpoint folder to create")
    _workers(command)
    text = "write a checkpoint in another layout, ZeRO stage or world size, moments and steps included"
    command = commands.add_parser("reshard", help=text, description=text)
    command.add_argument(
        "source",
        type=Path,
        metavar="DIR",
        help="a run's stage, a checkpoint folder, one tag in it, or a Hugging Face folder",
    )
    command.add_argument("--out", required=True, type=Path, help="the checkpoint folder to create")
    command.add_argument(
        "--source-config",
        type=Path,
        help="the model's config.json, where Hugging Face files are read or written and it lies elsewhere",
    )
    _layout_options(command)
    _workers(command)
    text = "measure whether a large model computes a small one's function; exit code 1 when it does not"
    command = commands.add_parser("verify", help=text, description=text)
    command.add_argument(
        "small",
        type=Path,
        metavar="SMALL",
        help="the source: a run's stage, a checkpoint folder, a Hugging Face folder",
    )
    command.add_argument("large", type=Path, metavar="LARGE", help="what grew from it")
    command.add_argument("--json", action="store_true", help="print the measurements as JSON")
    _reading_parsers(commands)


def _reading_parsers(commands: argparse._SubParsersAction) -> None:
    """Commands that say something about checkpoints, and the one that gives them to others."""
    place = "a run's stage, a checkpoint folder, one tag in it, or a Hugging Face folder"
    text = "say what a checkpoint is: layout, model, optimizer, where it came from; its numbers are not read"
    command = commands.add_parser("inspect", help=text, description=text)
    command.add_argument("source", type=Path, metavar="DIR", help=place)
    command.add_argument("--json", action="store_true", help="print the facts as JSON")
    command.add_argument(
        "--tensors", action="store_true", help="list every tensor with its shape, type and optimizer group"
    )
    text = "hash every file of a checkpoint against its manifest; without a manifest, see whether its files agree; exit code 2 when one is damaged"
    command = commands.add_parser("check", help=text, description=text)
    command.add_argument("source", type=Path, metavar="DIR", help=place)
    command.add_argument(
        "--workers",
        type=_count,
        default=WORKERS,
        help="files that are hashed at the same time (default: one more than the CPUs)",
    )
    text = "compare two checkpoints of any layout number by number: weights, moments, steps, hyper-parameters; exit code 1 when anything differs"
    command = commands.add_parser("diff", help=text, description=text)
    command.add_argument("a", type=Path, metavar="A", help=place)
    command.add_argument("b", type=Path, metavar="B", help="another, in any layout, ZeRO stage and world size")
    command.add_argument("--json", action="store_true", help="print the differences as JSON")
    command.add_argument(
        "--weights-only", action="store_true", help="leave the optimizer out (Hugging Face folders hold none)"
    )
    text = "write a checkpoint as a Hugging Face folder: safetensors, config, tokenizer, and a model card with what it cost"
    command = commands.add_parser("export", help=text, description=text)
    command.add_argument("source", type=Path, metavar="DIR", help=place)
    command.add_argument("--out", required=True, type=Path, metavar="HF_DIR", help="the folder to create")
    command.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16", "float16"],
        help="of the stored weights (default float32)",
    )
    command.add_argument("--source-config", type=Path, help="the model's config.json, where the checkpoint holds none")


def _layout_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--format",
        help="layout of the result: zero, universal or huggingface (default: huggingface for such a source, else zero)",
    )
    command.add_argument("--zero-stage", type=int, choices=[1, 2, 3], help="of --format zero (default 1)")
    command.add_argument("--world-size", type=_count, help="of --format zero: ranks that will load it (default 2)")
    command.add_argument(
        "--bf16", action="store_true", help="of --format zero: the engine will train in bf16 (its file names differ)"
    )
    command.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of --format huggingface: of the stored weights (default float32)",
    )


def _workers(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workers",
        type=_count,
        default=WORKERS,
        help="processes that write (default: one more than the CPUs); the result is the same for any number",
    )


def _expansion_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--source",
        required=True,
        type=Path,
        help="a run's stage, a checkpoint folder, one tag in it, or a Hugging Face folder",
    )
    command.add_argument("--source-config", type=Path, help="the source's config.json, where the checkpoint holds none")
    command.add_argument(
        "--target", required=True, help="CONFIG.yaml:MODEL, a Hugging Face config.json, or a folder with one"
    )
    command.add_argument(
        "--method",
        default="lemon",
        help="lemon (default, lossless), fpi, net2net, aki, stack, interpolate, or random (from scratch)",
    )
    command.add_argument(
        "--optimizer-state",
        default="reset",
        choices=["reset", "grow"],
        help="fresh AdamW (default), or grow both moments",
    )
    _layout_options(command)
    command.add_argument(
        "--depth", default="zero", choices=["zero", "cancel"], help="how new layers start (default zero)"
    )
    command.add_argument(
        "--placement", default="even", choices=["even", "top"], help="where new layers stand (default even)"
    )
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


def _plan(options: argparse.Namespace) -> None:
    from pipeline.expansion import preview
    from pipeline.records import run_folder

    job = _job(options)
    content = preview.preview(job)
    preview.show(job, content, _console())
    if options.out:
        run_folder.write_json(options.out, content)
        print(f"plan: wrote {options.out}")


def _expand(options: argparse.Namespace) -> None:
    huge_pages()
    from pipeline.expansion import expand

    expand.execute_expansion(_job(options), options.out, workers=options.workers)
    print(f"expand: wrote {options.out}")


def _layout(options: argparse.Namespace):
    """The layout asked for; options of one layout choose it, and contradict another."""
    from pipeline import checkpoints

    given = {key: getattr(options, key) for key in ("zero_stage", "world_size", "bf16", "dtype")}
    chosen = {key: value for key, value in given.items() if value}
    return checkpoints.CheckpointLayout.choose(options.format, checkpoints.default_layout(options.source), chosen)


def _job(options: argparse.Namespace):
    from pipeline.expansion import expand
    from pipeline.expansion import target as targets
    from pipeline.growth import methods

    layout = _layout(options)
    known = methods.find(options.method).Options.model_fields
    chosen = methods.parse(options.method, {name: getattr(options, name) for name in known}, options.seed)
    target = targets.find(options.target, options.source, options.source_config)
    return expand.plan_expansion(
        options.source,
        target,
        chosen,
        layout,
        options.source_config,
        grow_optimizer_state=options.optimizer_state == "grow",
    )


def _reshard(options: argparse.Namespace) -> None:
    from pipeline.checkpoints import reshard

    job = reshard.plan_reshard(options.source, _layout(options), options.source_config)
    reshard.execute_reshard(job, options.out, options.workers)
    print(f"reshard: wrote {options.out}")


def _verify(options: argparse.Namespace) -> int:
    import json

    huge_pages()
    from pipeline.expansion import compare

    found, plan, rounded = compare.compare(options.small, options.large)
    if options.json:
        print(
            json.dumps(
                {
                    "small": str(options.small),
                    "large": str(options.large),
                    "method": plan.options.method,
                    **found.as_json(),
                },
                indent=2,
            )
        )
    else:
        compare.show(found, plan, rounded, _console())
    return 0 if found.lossless else 1


def _inspect(options: argparse.Namespace) -> None:
    import json

    from pipeline.checkpoints import describe

    facts = describe.inspect(options.source, options.tensors)
    if options.json:
        print(json.dumps(facts, indent=2, default=str))
    else:
        describe.show(facts, _console())


def _check(options: argparse.Namespace) -> None:
    from pipeline.checkpoints import integrity

    print(integrity.check(options.source, options.workers))


def _diff(options: argparse.Namespace) -> int:
    import json

    from pipeline.checkpoints import diff

    found = diff.compare(options.a, options.b, options.weights_only)
    if options.json:
        print(json.dumps(found.as_json(), indent=2, default=str))
    else:
        diff.show(found, _console())
    return 0 if found.equal else 1


def _export(options: argparse.Namespace) -> None:
    from pipeline.export import folder as export

    export.export_checkpoint(options.source, options.out, options.dtype, options.source_config, WORKERS)
    print(f"export: wrote {options.out}")


def _console():
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200)


COMMANDS = {
    "plan": _plan,
    "expand": _expand,
    "verify": _verify,
    "reshard": _reshard,
    "inspect": _inspect,
    "check": _check,
    "diff": _diff,
    "export": _export,
}

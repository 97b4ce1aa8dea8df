"""`lemon plan`, `expand` and `verify`."""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, get_args

import pipeline
from pipeline.cli.arguments import (
    CHECKPOINT,
    Commands,
    Handler,
    LayoutsHelp,
    add_hash,
    add_json,
    add_layout,
    add_part,
    add_source_config,
    add_workers,
    path,
    selected_layout,
)
from pipeline.cli.output import console
from pipeline.errors import UserError
from pipeline.records.processes import choose_accelerator, huge_pages
from pipeline.records.stage_facts import OptimizerState

if TYPE_CHECKING:
    from pipeline.checkpoints import CheckpointLayout

EXAMPLES = {"--method-option": "noise=0.5", "--fit": "steps=30"}
"""Of `key=value`, by option."""


def add_parsers(commands: Commands) -> None:
    text = "say what an expansion would do, and what it needs; no tensor is read"
    plan = _command(commands, "plan", text, _plan)
    plan.add_argument(
        "--out", type=path, metavar="FILE", help="write the whole plan there, as JSON (default: it is printed only)"
    )
    add_json(plan, "the whole plan")
    text = "expand a checkpoint to a larger model that computes the same function"
    expand = _command(commands, "expand", text, _expand)
    expand.add_argument("--out", required=True, type=path, help="the checkpoint folder to create")
    expand.add_argument(
        "--data",
        type=path,
        metavar="CONFIG",
        help="fit a learned method on the data of this YAML config, in OUT.fit, which goes on where it was interrupted",
    )
    expand.add_argument(
        "--fit", action="append", default=[], metavar="KEY=VALUE", help="a key of the fit's recipe, such as steps=30"
    )
    add_workers(expand)
    add_hash(expand)
    add_part(expand, "expand --source DIR --target CONFIG --out OUT")
    text = "measure whether a large model computes a small one's function; exit code 1 when it does not"
    verify = commands.add_parser("verify", help=text, description=text)
    verify.add_argument("small", type=path, metavar="SMALL", help=f"the source: {CHECKPOINT}")
    verify.add_argument("large", type=path, metavar="LARGE", help="what grew from it")
    add_source_config(verify)
    add_json(verify, "the measurements")
    verify.set_defaults(handler=_verify)


def _command(commands: Commands, name: str, text: str, handler: Handler) -> argparse.ArgumentParser:
    """A command that decides an expansion."""
    command = commands.add_parser(name, help=text, description=text, formatter_class=_MethodsHelp)
    command.set_defaults(handler=handler)
    command.add_argument("--source", required=True, type=path, help=CHECKPOINT)
    add_source_config(command)
    command.add_argument(
        "--target", help="CONFIG.yaml:MODEL, a Hugging Face config.json, or a folder with one; --operator has its own"
    )
    command.add_argument("--method", help="how to grow (default lemon); the methods are listed below")
    command.add_argument(
        "--method-option", action="append", default=[], metavar="KEY=VALUE", help="an option of the method, see below"
    )
    command.add_argument(
        "--operator", type=path, metavar="DIR", help="grow as the expansion whose result is DIR has grown, exactly"
    )
    command.add_argument(
        "--optimizer-state",
        default="reset",
        choices=get_args(OptimizerState),
        help="a fresh optimizer (default), grow its state with the weights, or keep it on the source's entries and "
        "begin at zero on new ones",
    )
    add_layout(command)
    command.add_argument("--seed", type=int, help="of the noise and of what starts fresh (default 0)")
    return command


class _MethodsHelp(LayoutsHelp):
    """Help that ends with the layouts, and with the methods and their options."""

    def format_help(self) -> str:
        from pipeline.growth import methods

        lines = "\n".join(f"  {line}" for line in methods.describe())
        return f"{super().format_help()}\nmethods, and their options as --method-option KEY=VALUE:\n{lines}\n"


class _Arguments(TypedDict):
    """The arguments that `pipeline.plan` and `pipeline.expand` share."""

    source: Path
    target: str | None
    method: str | None
    operator: Path | None
    method_options: dict[str, str]
    optimizer_state: OptimizerState
    layout: "CheckpointLayout"
    source_config: Path | None
    seed: int | None


def _arguments(options: argparse.Namespace) -> _Arguments:
    return {
        "source": options.source,
        "target": options.target,
        "method": options.method,
        "operator": options.operator,
        "method_options": dict(_pair("--method-option", text) for text in options.method_option),
        "optimizer_state": options.optimizer_state,
        "layout": selected_layout(options),
        "source_config": options.source_config,
        "seed": options.seed,
    }


def _pair(option: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UserError(f"{option} '{text}': an option is written key=value, such as {EXAMPLES[option]}")
    return key, value


def _plan(options: argparse.Namespace) -> None:
    from pipeline.expansion import preview

    planned = pipeline.plan(**_arguments(options))
    if options.json:
        print(json.dumps(planned.as_json(), indent=2))
    else:
        preview.show(planned, console())
    if options.out:
        planned.save(options.out)


def _expand(options: argparse.Namespace) -> None:
    from pipeline.training import preemption

    huge_pages()
    if options.part is not None:
        _expand_part(options)
        return
    if options.data:
        choose_accelerator()
    recipe = dict(_pair("--fit", text) for text in options.fit)
    with preemption.heard() if options.data else nullcontext():
        pipeline.expand(
            **_arguments(options),
            out=options.out,
            data=options.data,
            fit=recipe,
            workers=options.workers,
            file_hash=options.algorithm,
        )


def _expand_part(options: argparse.Namespace) -> None:
    if options.data or options.fit:
        raise UserError("--part: a fit is one process's; expand once without --part, then name its result --operator")
    writing = {"workers": options.workers, "file_hash": options.algorithm}
    pipeline.expand_part(options.part, **_arguments(options), out=options.out, **writing)


def _verify(options: argparse.Namespace) -> int:
    huge_pages()
    from pipeline.expansion import compare

    comparison = pipeline.verify(options.small, options.large, source_config=options.source_config)
    if options.json:
        print(json.dumps(comparison.as_json(), indent=2))
    else:
        compare.show(comparison, console())
    return 0 if comparison.lossless else 1

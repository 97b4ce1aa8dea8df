"""Arguments that several commands share."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from pipeline.cli.output import printable
from pipeline.records.file_hashes import ALGORITHMS, FASTEST
from pipeline.records.processes import WORKERS

if TYPE_CHECKING:
    from pipeline.checkpoints import CheckpointLayout

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Handler = Callable[[argparse.Namespace], int | None]

CHECKPOINT = "a run's stage, a checkpoint folder, one tag in it, or a Hugging Face folder"
DTYPES = ("float32", "bfloat16", "float16")


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, as all that a user gets wrong is told; the usage is a --help away."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}; see {self.prog} --help\n")


def path(text: str) -> Path:
    """A file or folder. An empty name would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name; is a variable unset?")
    return Path(text)


def positive_integer(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least 1")
    return int(text)


def positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"'{text}' is no number above 0")
    return value


def node_counts(text: str) -> tuple[int, int]:
    """The fewest and the most nodes of `2` or `1:2`."""
    fewest, _, most = text.partition(":")
    counts = positive_integer(fewest), positive_integer(most or fewest)
    if counts[0] > counts[1]:
        raise argparse.ArgumentTypeError(f"'{text}': the fewest come first, as in {counts[1]}:{counts[0]}")
    return counts


def add_local_rank(parser: argparse.ArgumentParser) -> None:
    """The option that the `deepspeed` launcher puts behind the name of what it starts, in front of all else."""
    parser.add_argument("--local_rank", "--local-rank", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


WRITERS = "processes that write (default: one more than the CPUs); the result is the same for any number"


def add_workers(command: argparse.ArgumentParser, text: str = WRITERS) -> None:
    command.add_argument("--workers", type=positive_integer, default=WORKERS, help=text)


def add_hash(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--hash",
        dest="algorithm",
        default=FASTEST,
        choices=ALGORITHMS,
        help=f"by which the manifest of the result seals its files (default {FASTEST})",
    )


def add_part(command: argparse.ArgumentParser, example: str) -> None:
    """example: the command's arguments in front of the option."""
    command.add_argument(
        "--part",
        metavar="i/n",
        help="write the i-th of n parts of the files; whoever ends last publishes, and says so. A part that died is "
        "run again alone, with the same n. The tasks of a Slurm array: sbatch --array=1-64 --wrap "
        f"'lemon {example} --part $SLURM_ARRAY_TASK_ID/64'",
    )


SOURCE_CONFIG = "the source's config.json, where the checkpoint holds none"


def add_source_config(command: argparse.ArgumentParser, text: str = SOURCE_CONFIG) -> None:
    command.add_argument("--source-config", type=path, help=text)


def add_json(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("--json", action="store_true", help=f"print {what} as JSON")


KEPT = "the source's, else "


def add_layout(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--format",
        metavar="LAYOUT",
        help="of the result, see below (default: huggingface for such a source, else zero)",
    )
    command.add_argument("--zero-stage", type=int, choices=[0, 1, 2, 3], help=f"of --format zero (default: {KEPT}1)")
    command.add_argument(
        "--world-size", type=positive_integer, help=f"of --format zero: ranks that will load it (default: {KEPT}2)"
    )
    command.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help=f"of --format zero: the engine will train in bf16, its file names differ (default: {KEPT}no)",
    )
    command.add_argument(
        "--fp32-sums",
        action=argparse.BooleanOptionalAction,
        help="of --format zero --zero-stage 1 --bf16: the engine will sum gradients in fp32 (grad_accum_dtype), its "
        f"files differ (default: {KEPT}no)",
    )
    command.add_argument(
        "--dtype", choices=DTYPES, help="of --format huggingface: of the stored weights (default float32)"
    )


class LayoutsHelp(argparse.RawDescriptionHelpFormatter):
    """Help that ends with the layouts and the options that belong to each. They are asked for when it is printed: that
    imports torch."""

    def format_help(self) -> str:
        from pipeline.checkpoints.layouts import LAYOUTS

        lines = []
        for layout in LAYOUTS.values():
            options = ", ".join(f"--{key.replace('_', '-')}" for key in layout.keys)
            lines.append(f"  {layout.name}: {layout.title}" + (f" ({options})" if options else ""))
        return f"{super().format_help()}\nlayouts, and the options that belong to each:\n" + "\n".join(lines) + "\n"


def selected_layout(options: argparse.Namespace) -> "CheckpointLayout":
    """The layout asked for; options of one layout choose it, and contradict another. What they leave open is as in the
    source. Raises UserError."""
    from pipeline import checkpoints
    from pipeline.checkpoints.layouts import LAYOUTS

    keys = [key for layout in LAYOUTS.values() for key in layout.keys]
    selected = {key: getattr(options, key) for key in keys if getattr(options, key) is not None}
    default, like = checkpoints.default_layout(options.source), checkpoints.locate(options.source)
    return checkpoints.CheckpointLayout.choose(options.format, default, selected, like)

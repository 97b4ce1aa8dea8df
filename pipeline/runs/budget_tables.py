"""The budget of a step for people to read."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from pipeline.accounting.budget import Budget, Part
from pipeline.checkpoints.serialization.amounts import amount

WORDS = {"other": "host"}
"""Parts that go by another name."""


def show(budget: Budget, console: Console) -> None:
    for line in _head(budget):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(_parts(budget))
    for line in _end(budget):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if budget.operators:
        console.print(_operators(budget))


def _head(budget: Budget) -> Iterator[str]:
    s = budget.settings
    compiled = "compiled layers" if s.compile else "eager layers"
    again = f", activation_checkpointing {s.activation_checkpointing}" if s.activation_checkpointing else ""
    yield f"stage        {s.stage}, model {s.model}, from {s.origin}"
    yield f"on           {s.ranks} rank(s), {s.device}, ZeRO-{s.zero_stage}"
    yield f"computing    {s.numbers}, attention {s.attention}, {compiled}{again}"
    cut = f"{s.micro_batch} x {s.micro_batches} x {s.ranks}"
    yield f"batch        {budget.work.samples:,} samples = {cut}"


def _parts(budget: Budget) -> Table:
    """Times of rank 0, and of the rank on which a part takes longest."""
    title = f"one step, over {budget.steps} measured ones"
    columns = ("part", "median", "share", "least", "most", "slowest rank")
    table = Table(*columns, box=None, pad_edge=False, title=title, title_justify="left", title_style="")
    for name, part in [*budget.parts.items(), ("step", budget.step)]:
        table.add_row(WORDS.get(name, name), *_times(part))
    return table


def _times(part: Part) -> list[str]:
    shown = [f"{1e3 * seconds:.1f} ms" for seconds in (part.median, part.least, part.most, part.slowest)]
    return [shown[0], f"{100 * part.share:.1f} %", *shown[1:]]


def _end(budget: Budget) -> Iterator[str]:
    work, seconds = budget.work, budget.step.median
    tokens = f", {budget.tokens_per_second:,.0f} tokens/s" if work.tokens > work.samples else ""
    yield f"speed        {budget.samples_per_second:,.1f} samples/s{tokens}"
    if budget.mfu is None or budget.hfu is None:
        yield f"MFU, HFU     not known: no data sheet here has the peak of {budget.settings.device} in these numbers"
    else:
        time = f"({seconds:.4g} s x {work.peak:.3g} FLOP/s)"
        yield f"MFU          {100 * budget.mfu:.3g} % = {work.flops:.3g} FLOPs of the model / {time}"
        done = work.flops + work.again
        yield f"HFU          {100 * budget.hfu:.3g} % = {done:.3g} FLOPs with those besides the model's / {time}"
        yield f"peak         {work.peak:.3g} FLOP/s of all {budget.settings.ranks} rank(s) together, {work.peak_of}"
    yield f"memory       {', '.join(map(amount, budget.memory))} at most, {budget.memory_of}, rank by rank"
    if budget.compile_seconds:
        yield f"compiling    {budget.compile_seconds:.1f} s, before the measured steps"
    if kernels := budget.kernels:
        yield (
            f"kernels      {1e3 * kernels.computing:.1f} ms of a step computing, {1e3 * kernels.communicating:.1f} ms "
            f"communicating, of which {1e3 * kernels.exposed:.1f} ms are not hidden behind computing"
        )


def _operators(budget: Budget) -> Table:
    title = "operators that take longest, of a traced step (tracing makes them slower)"
    columns = ("operator", "own time", "calls")
    table = Table(*columns, box=None, pad_edge=False, title=title, title_justify="left", title_style="")
    for each in budget.operators:
        table.add_row(each.name, f"{1e3 * each.seconds:.1f} ms", f"{each.calls:g}")
    return table

"""A dry run for people to read."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.accounting.memory import ACTIVATIONS
from pipeline.checkpoints.serialization.amounts import amount
from pipeline.runs.dry_run import DryRun, resolved

BARS = "▁▂▃▄▅▆▇█"


def show(run: DryRun, console: Console, verbose: bool = False) -> None:
    """Print it. verbose: with the whole resolved config, memory in every ZeRO stage of every training stage."""
    content = run.content
    if verbose:
        _lines(console, resolved(run).splitlines())
    _lines(console, _head(content))
    console.print(_stages(content))
    _lines(console, (line for stage in _trainings(content) for line in _schedule(stage)))
    _memory(console, content, verbose)
    _lines(console, _end(content))


def _lines(console: Console, lines: Any) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _trainings(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [stage for stage in content["stages"] if stage["kind"] != "expand"]


def _head(content: dict[str, Any]) -> Iterator[str]:
    cluster = content["cluster"]
    nodes, processes = cluster["nodes"], cluster["processes"]
    yield f"run          {content['name']} in {content['folder']}, seed {content['config']['seed']}; nothing is written"
    yield (
        f"cluster      {nodes} node{'s' * (nodes != 1)} x {processes} process{'es' * (processes != 1)} = "
        f"{cluster['ranks']} ranks"
    )
    for number, command in enumerate(content["launch"]):
        yield f"{f'on node {number}' if nodes > 1 else 'launch':<13}{command}"
    for name, value in content["data"]["lines"].items():
        yield f"{name:<13}{value}"


def _stages(content: dict[str, Any]) -> Table:
    names = ("stage", "from", "model", "parameters", "batch", "steps", "tokens a step", "epochs", "FLOPs", "evaluating")
    table = Table(*names, "status", box=None, pad_edge=False)
    for stage in content["stages"]:
        shared = [stage["name"], stage["origin"] or "scratch", stage["model"], f"{stage['parameters']:,}"]
        row = _training_row(stage) if stage["kind"] != "expand" else [f"expand by {stage['method']}", *[""] * 5]
        table.add_row(*shared, *row, stage["status"])
    return table


def _training_row(stage: dict[str, Any]) -> list[str]:
    batch, schedule, flops = stage["batch"], stage["schedule"], stage["flops"]
    ranks = batch["samples"] // (batch["micro_batch"] * batch["accumulation"])
    epochs = schedule["epochs"] if schedule else None
    return [
        f"{batch['samples']} = {batch['micro_batch']} x {batch['accumulation']} x {ranks}",
        f"{'up to ' if stage['stop'] else ''}{schedule['steps']:,}" if schedule else "?",
        f"{batch['tokens']:,}",
        f"{epochs:.3g}" if epochs else "?",
        f"{flops['train']:.3g}" if flops else "?",
        f"{flops['evaluation']:.3g}" if flops else "?",
    ]


def _schedule(stage: dict[str, Any]) -> Iterator[str]:
    schedule, name = stage["schedule"], stage["name"]
    if schedule is None:
        yield f"{name}: its steps follow from the number of samples, which is not known yet"
        return
    top = max(schedule["plot"])
    bars = "".join(BARS[round(rate / top * (len(BARS) - 1))] if top else BARS[0] for rate in schedule["plot"])
    begin = schedule["begin"]
    part = f"{schedule['steps']:,} steps" + (f" from step {begin:,.7g} of the schedule" if begin else "")
    warmup = f"warm-up {schedule['warmup']:,} of " if schedule["warmup"] > begin or not begin else ""
    horizon = f", horizon {schedule['horizon']:,}" if schedule["horizon"] != schedule["steps"] else ""
    yield f"{name}: {schedule['kind']}, peak {schedule['peak']:g}, {warmup}{part}{horizon}"
    for measure, value in (stage["stop"] or {}).items():
        until = f"that of '{value}'" if isinstance(value, str) else value
        bound = "at least" if measure == "top1" else "at most"
        yield f"  ends before that at the first evaluation with {measure} {bound} {until}"
    yield f"  {bars}  " + ", ".join(f"{rate:.3g} at {step:,}" for step, rate in schedule["rates"].items())


def _memory(console: Console, content: dict[str, Any], verbose: bool) -> None:
    """The largest training of every precision; verbose: every one."""
    shown = _trainings(content) if verbose else _largest(_trainings(content))
    for stage in shown:
        memory = stage["memory"]
        sums = f", gradients summed in {stage['gradient_sums']}" if stage["gradient_sums"] else ""
        title = f"memory of a rank in {stage['name']} ({stage['precision']}{sums}), model states by ZeRO stage"
        columns = ("ZeRO", "weights", "gradients", "optimizer", "gathered", "together", "bucket (on a GPU)")
        table = Table(*columns, box=None, pad_edge=False, title=title, title_justify="left", title_style="")
        for zero_stage, states in memory["zero_stages"].items():
            mark = " <-" if zero_stage == stage["zero_stage"] else ""
            keys = ("weights", "gradients", "optimizer", "gathered", "held", "bucket")
            table.add_row(f"{zero_stage}{mark}", *(amount(states[key]) for key in keys))
        console.print(table)
        _lines(console, [f"activations  {amount(memory['activations'])} besides ({ACTIVATIONS})"])
        if memory["offloaded"]:
            _lines(console, ["offload      what the optimizer has lies in host memory (deepspeed.zero_optimization)"])
        if "new_entries" in memory:
            _lines(console, [f"new entries  {amount(memory['new_entries'])} besides at each step (a copy, and masks)"])
        if memory["besides"]:
            _lines(
                console, [f"fit          {amount(memory['besides'])} besides (source, noise, the weights of a layer)"]
            )
        _lines(
            console, [f"save         {amount(memory['save_copy'])} of host memory on rank 0 (save: {stage['save']})"]
        )


def _largest(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def held(stage: dict[str, Any]) -> int:
        return int(stage["memory"]["zero_stages"][stage["zero_stage"]]["held"])

    return [max(stages, key=held)] if stages else []


def _end(content: dict[str, Any]) -> Iterator[str]:
    flops, disk = content["flops"], content["disk"]
    most = "at most " * any(stage["stop"] for stage in _trainings(content))
    yield f"FLOPs        {'not known yet' if flops is None else f'{most}{flops:.4g} in all, evaluation included'}"
    yield f"disk         {amount(disk['needed'])} of checkpoints at most, {amount(disk['free'])} free"
    for note in content["notes"]:
        yield f"note         {note}"

"""An estimate of FLOPs for people to read."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from pipeline.accounting.estimate import DeviceHours, Estimate, ModelEstimate, RunEstimate, Sample, StageEstimate
from pipeline.accounting.memory import ACTIVATIONS
from pipeline.checkpoints.serialization.amounts import amount

COLUMNS = "model: forward and backward of the model; hardware: with what is computed again or besides"


def show(estimate: Estimate, console: Console) -> None:
    if estimate.model:
        _show_model(estimate.model, estimate.convention, console)
    if estimate.run:
        _show_run(estimate.run, estimate.convention, console)


def _lines(console: Console, lines: Iterator[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False)


def _title(what: str, convention: str) -> Iterator[str]:
    """FLOPs never stand without how they are counted."""
    yield f"FLOPs {what}: {convention} ({COLUMNS})"


def _flops(value: float | None) -> str:
    return "?" if value is None else f"{value:.5g}"


def _what(sample: Sample) -> str:
    """A sample in words."""
    at = f", head at {sample.head_positions:,}" if sample.head_positions is not None else ""
    return f"{sample.unit} of {sample.tokens:,} tokens{at}"


def _show_model(model: ModelEstimate, convention: str, console: Console) -> None:
    _lines(console, _model_head(model))
    sample, each = model.sample, model.sample.per_token
    _lines(console, _title("of a model", convention))
    table = _table("of", "forward", "model", "hardware")
    table.add_row(f"one {sample.unit}", *map(_flops, (sample.forward, sample.model, sample.hardware)))
    table.add_row("a token of it", *map(_flops, (each.forward, each.model, each.hardware)))
    if training := model.training:
        table.add_row(f"{training.samples:,} {sample.unit}s", "", *map(_flops, (training.model, training.hardware)))
    console.print(table)
    if training and training.device_hours:
        _lines(console, iter([f"device-hours {training.device_hours.hours:,.4g}", _formula(training.device_hours)]))


def _model_head(model: ModelEstimate) -> Iterator[str]:
    yield f"model        {model.family} ({model.head}), {model.parameters:,} parameters"
    yield f"sample       {_what(model.sample)}"
    if model.activation_checkpointing:
        yield f"recomputed   of every {model.activation_checkpointing} layer(s) the first"


def _formula(hours: DeviceHours) -> str:
    return (
        f"             model FLOPs of training / (MFU {hours.mfu:g} x {hours.peak:.4g} FLOP/s x 3600 s), peak "
        f"{hours.peak_of}"
    )


def _show_run(run: RunEstimate, convention: str, console: Console) -> None:
    _lines(console, _run_head(run))
    _lines(console, _title("of a sample, and of a token of it", convention))
    console.print(_samples(run))
    _lines(console, _title("of the training of stages", convention))
    console.print(_stages(run))
    _lines(console, _hours(run))
    _lines(console, iter(["memory of a rank, estimated as by lemon run --dry-run"]))
    console.print(_memory(run))
    _lines(console, iter([f"activations  {ACTIVATIONS}"]))


def _run_head(run: RunEstimate) -> Iterator[str]:
    yield f"run          {run.name} on {run.ranks} rank(s); nothing is written"
    for name, value in run.data.items():
        yield f"{name:<13}{value}"


def _samples(run: RunEstimate) -> Table:
    columns = ("stage", "model", "parameters", "a sample is a", "forward", "model", "hardware")
    table = _table(*columns, "of a token", "model", "hardware")
    for stage in run.stages:
        row: list[str] = []
        if sample := stage.sample:
            each = sample.per_token
            counts = (sample.forward, sample.model, sample.hardware, each.forward, each.model, each.hardware)
            row = [_what(sample), *map(_flops, counts)]
        table.add_row(stage.name, stage.model, f"{stage.parameters:,}", *row)
    return table


def _stages(run: RunEstimate) -> Table:
    columns = ("stage", "batch", "steps", "model", "hardware", "evaluating", "device-hours", "disk")
    table = _table(*columns)
    for stage in run.stages:
        table.add_row(stage.name, *_stage(stage), amount(stage.disk))
    hours = "" if run.device_hours is None else f"{run.device_hours:,.4g}"
    sums = map(_flops, (run.model, run.hardware, run.evaluation))
    table.add_row("all", "", "", *sums, hours, amount(run.disk))
    return table


def _stage(stage: StageEstimate) -> list[str]:
    if stage.sample is None:
        return [f"{stage.kind}", *[""] * 5]
    if (training := stage.training) is None:
        return [f"{stage.batch:,}", *["?"] * 4, ""]
    hours = f"{training.device_hours.hours:,.4g}" if training.device_hours else ""
    counts = map(_flops, (training.model, training.hardware, training.evaluation))
    return [f"{stage.batch:,}", f"{'up to ' if training.at_most else ''}{training.steps:,}", *counts, hours]


def _hours(run: RunEstimate) -> Iterator[str]:
    """How device-hours are made, once for each peak."""
    trained = [stage.training for stage in run.stages if stage.training]
    lines = dict.fromkeys(_formula(training.device_hours) for training in trained if training.device_hours)
    if lines:
        yield "device-hours of the model FLOPs of training, evaluation not included"
        yield from lines


def _memory(run: RunEstimate) -> Table:
    columns = ("stage", "ZeRO", "states", "bucket (on a GPU)", "activations", "besides", "host, while it saves")
    table = _table(*columns)
    for stage in run.stages:
        if memory := stage.memory:
            states = memory.zero_stages[memory.zero_stage]
            besides = memory.besides + (memory.new_entries or 0)
            sizes = (states.held, states.bucket, memory.activations, besides, memory.save_copy)
            table.add_row(stage.name, str(memory.zero_stage), *map(amount, sizes))
    return table

"""`lemon study CONFIG --dry-run`: the runs of a study, what they cost, how far they are."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from pipeline.accounting.flops import CONVENTION
from pipeline.checkpoints.serialization.amounts import amount
from pipeline.report.formatting import duration
from pipeline.runs import stage_needs
from pipeline.runs.device_hours import Devices
from pipeline.runs.stage_needs import Cluster
from pipeline.studies import choice, planned, protocol
from pipeline.studies.composed import Composed
from pipeline.studies.planned import PlannedStage
from pipeline.studies.running import all_runs, words
from pipeline.studies.schema import Study
from pipeline.training.launcher import Start


def show(study: Study, start: Start, console: Console, devices: Devices | None = None) -> None:
    """Print it. devices: what it is to be trained on. Raises UserError with what a run would say."""
    protocol.of(study)
    runs = all_runs(study)
    stages = planned.planned(runs, start)
    for line in _head(study):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(_table(stages))
    for line in [*_end(study, runs, stages, start), *_device_hours(stages, devices)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _head(study: Study) -> Iterator[str]:
    yield f"study        {study.name} in {study.path}"
    if study.question:
        yield f"question     {study.question}"
    against = f"'{study.baseline}'" + f", and {', '.join(study.frontier)} for equal FLOPs" * bool(study.frontier)
    yield f"baseline     {against}"
    if study.smaller:
        yield f"smaller      {', '.join(study.smaller)}: the target by a smaller model, without growing"
    target = "what the baseline ends with under the same seed" if study.target == "final" else study.target
    yield f"target       {study.metric}: {target}, reached and kept, mean over {study.smooth} evaluations"
    tuned = f"{study.tuning.trials} trials of each tuned arm under seed {study.tuning.seed}, on the validation half"
    tuned += f"; the target bettered by {study.tuning.margin:g}" if study.tuning.margin else ""
    elsewhere = f"as it was chosen in {study.tuned_in}"
    yield f"tuning       {'none' if not study.tuned else elsewhere if study.tuned_in else tuned}"
    yield f"seeds        {', '.join(map(str, study.seeds))}, on the test half"
    if not choice.complete(study):
        yield "note         until the tuning has ended, the first trial of each arm stands for the one that is chosen"


def _table(stages: list[PlannedStage]) -> Table:
    table = Table("run", "stage", "does", "steps", "FLOPs", "state", box=None, pad_edge=False)
    run = ""
    for stage in stages:
        flops = "" if stage.kind == "expand" else "?" if stage.flops is None else f"{stage.flops:.3g}"
        steps = f"{stage.steps:,}" if stage.steps else ""
        state = "done" if stage.done else "to do"
        table.add_row("" if stage.run == run else stage.run, stage.name, stage.kind, steps, flops, state)
        run = stage.run
    return table


def _device_hours(stages: list[PlannedStage], devices: Devices | None) -> Iterator[str]:
    """Of all training, evaluation excluded."""
    trained = [stage for stage in stages if stage.kind != "expand"]
    if devices is None:
        return
    if any(stage.model_flops is None for stage in trained):
        yield "device-hours not known before the data are"
        return
    hours = [devices.hours(stage.model_flops or 0, *stage.formats) for stage in trained]
    peaks = ", ".join(dict.fromkeys(f"{each.peak:.4g} FLOP/s ({each.peak_of})" for each in hours))
    whole = sum(each.hours for each in hours)
    yield f"device-hours {whole:,.1f} of one device for all training at an MFU of {devices.mfu:g} of {peaks}"


def _end(study: Study, runs: list[Composed], stages: list[PlannedStage], start: Start) -> Iterator[str]:
    known = [stage.flops for stage in stages if stage.flops is not None]
    total = f"{sum(known):.4g} in all, evaluation included" if len(known) == len(stages) else "not known yet"
    yield f"FLOPs        {total} ({CONVENTION})"
    needed = sum(stage_needs.of_run(each.config, Cluster.of(each.config, start)).disk for each in runs)
    yield f"disk         {amount(needed)} of checkpoints at most"
    found = planned.outlook(stages, planned.known_speeds(study.path))
    yield f"state        {words(found)}"
    if found.seconds is None and found.done < found.stages:
        yield "time         not known: speeds are measured when the study begins"
    elif found.seconds:
        yield f"time         about {duration(found.seconds)} left on the machine whose speeds were measured"

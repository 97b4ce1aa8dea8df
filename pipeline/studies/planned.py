"""What a study still has to do: every stage in its order, its FLOPs, and how long it takes on this machine.

Seconds of a step are measured once for every shape that is trained, by `lemon profile` on the stage that has it; as
stages end, what they really took corrects the rest.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.accounting.budget import Budget
from pipeline.accounting.wall_time import wall_time
from pipeline.config import dump
from pipeline.config.number_formats import BY_DEFAULT, MatmulPrecision
from pipeline.errors import FaultError, UserError
from pipeline.records.run_folder import StageFolder, read_json, write_json, write_text
from pipeline.records.strict import Strict
from pipeline.runs import preflight, stage_needs
from pipeline.runs.stage_needs import Cluster
from pipeline.studies.composed import Composed
from pipeline.training.launcher import Start

SPEEDS = "speeds.json"
STEPS = 5
"""Steps that are measured of a shape."""


class Speed(Strict):
    """step: seconds of one, by `lemon profile`; start: seconds until the first one, of reading and starting workers;
    rate: FLOP/s of its steps."""

    step: float
    start: float
    rate: float


@dataclass(frozen=True)
class PlannedStage:
    """A stage of one of the runs. shape: of its steps, equal ones take the same time; empty of an expansion. flops:
    evaluation included; None: not known before the data are. evaluating: FLOPs of evaluation per FLOP of training.
    took: seconds, once it has ended. model_flops, formats: of the training alone, and in which number formats."""

    folder: Path
    run: str
    name: str
    kind: str
    shape: str
    steps: int
    flops: int | None
    evaluating: float
    done: bool
    took: float | None
    model_flops: int | None = None
    formats: tuple[str, MatmulPrecision] = ("fp32", BY_DEFAULT)


def planned(runs: Sequence[Composed], start: Start) -> list[PlannedStage]:
    """All stages in their order. Raises UserError with what a run would say."""
    return [stage for composed in runs for stage in _of_run(composed, start)]


def _of_run(composed: Composed, start: Start) -> Iterator[PlannedStage]:
    cluster = Cluster.of(composed.config, start)
    preflight.before_data(composed.config, [cluster.ranks], start.allowed)
    for content in stage_needs.of_run(composed.config, cluster).stages:
        flops = content.get("flops")
        stage = PlannedStage(
            folder=composed.path / content["name"],
            run=composed.name,
            name=content["name"],
            kind=content["kind"],
            shape=_shape(content),
            steps=content["schedule"]["steps"] if content.get("schedule") else 0,
            flops=flops["total"] if flops else 0 if content["kind"] == "expand" else None,
            evaluating=flops["evaluation"] / flops["train"] if flops and flops["train"] else 0.0,
            done=False,
            took=None,
            model_flops=flops["model"] if flops else None,
            formats=(content.get("precision", "fp32"), content.get("matmul_precision", BY_DEFAULT)),
        )
        yield _as_it_is(stage)


def refreshed(stages: Sequence[PlannedStage]) -> list[PlannedStage]:
    """The same stages, of which more may have ended by now."""
    return [stage if stage.done else _as_it_is(stage) for stage in stages]


def _as_it_is(stage: PlannedStage) -> PlannedStage:
    folder = StageFolder(stage.folder)
    if not folder.finished:
        return stage
    spent = wall_time(stage.name, folder.times)
    return replace(stage, done=True, took=spent.seconds - spent.rows["waiting"] if spent else None)


def _shape(content: dict[str, Any]) -> str:
    """What the seconds of a step depend on, in words."""
    if content["kind"] == "expand":
        return ""
    batch = content["batch"]
    numbers = f"{content['precision']}, {content['matmul_precision']}"
    return f"{content['kind']} {content['model']}, {batch['samples']} samples, {batch['tokens']} tokens, {numbers}"


def measured_speeds(folder: Path, runs: Sequence[Composed], stages: Sequence[PlannedStage]) -> dict[str, Speed]:
    """Of every shape that is still to be trained; what has been measured before is kept in `folder`. Raises UserError
    and FaultError as `lemon profile` does."""
    known = known_speeds(folder)
    configs = {composed.name: composed for composed in runs}
    for stage in stages:
        if stage.kind == "train" and stage.shape not in known and not stage.done:
            known[stage.shape] = _measured(configs[stage.run], stage.name)
            write_json(folder / SPEEDS, {key: speed.model_dump() for key, speed in known.items()})
    return known


def known_speeds(folder: Path) -> dict[str, Speed]:
    """Those that have been measured before, by shape."""
    path = folder / SPEEDS
    held = read_json(path) if path.exists() else {}
    return {shape: Speed.model_validate(content) for shape, content in held.items()}


def _measured(composed: Composed, stage: str) -> Speed:
    """By a command of its own, whose workers end with it."""
    composed.path.mkdir(parents=True, exist_ok=True)
    file = composed.path / "profiled.yaml"
    write_text(file, dump(composed.config))
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "profile",
        str(file),
        "--stage",
        stage,
        "--steps",
        str(STEPS),
        "--json",
    ]
    begun = time.monotonic()
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    whole = time.monotonic() - begun
    file.unlink()
    if ended.returncode:
        raise (UserError if ended.returncode == 2 else FaultError)(
            f"study: the speed of '{stage}' could not be measured, lemon profile has ended with {ended.returncode}; "
            "what it said stands above"
        )
    found = Budget.model_validate(json.loads(ended.stdout[ended.stdout.index("{") :]))
    step, flops = found.step.median, found.work.flops + found.work.again
    return Speed(step=step, start=max(0.0, whole - 2 * STEPS * step), rate=flops / step)


@dataclass(frozen=True)
class Outlook:
    """How far a study is. flops: the share of all that is done, None where a sum is not known; seconds: that it still
    takes, None where no speed is known."""

    done: int
    stages: int
    flops: float | None
    seconds: float | None


def outlook(stages: Sequence[PlannedStage], speeds: dict[str, Speed]) -> Outlook:
    """What is left, by the measured speeds, corrected by what the stages that have ended took."""
    open_stages, ended = [stage for stage in stages if not stage.done], [stage for stage in stages if stage.done]
    known = all(stage.flops is not None for stage in stages)
    total = sum(stage.flops or 0 for stage in stages)
    guessed = [(_guess(stage, speeds), stage.took) for stage in ended if stage.took is not None]
    both = [(guess, took) for guess, took in guessed if guess]
    correction = sum(took for _, took in both) / sum(guess for guess, _ in both) if both else 1.0
    left = [_guess(stage, speeds) for stage in open_stages]
    return Outlook(
        done=len(ended),
        stages=len(stages),
        flops=sum(stage.flops or 0 for stage in ended) / total if known and total else None,
        seconds=None if None in left else correction * sum(guess or 0.0 for guess in left),
    )


def _guess(stage: PlannedStage, speeds: dict[str, Speed]) -> float | None:
    """Seconds of a stage, None where its speed was not measured. An expansion takes about as long as a start does; a
    fit is as fast as the slowest training, FLOP by FLOP, for it can be measured only when its source is there."""
    start = max((speed.start for speed in speeds.values()), default=None)
    if stage.kind != "train":
        slowest = min((speed.rate for speed in speeds.values()), default=None)
        return start if not stage.steps or start is None else start + (stage.flops or 0) / (slowest or 1)
    speed = speeds.get(stage.shape)
    return None if speed is None else speed.start + stage.steps * speed.step * (1 + stage.evaluating)

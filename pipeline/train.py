"""The training stage, as every worker runs it: build, resume or start, loop, save.

All randomness is a function of (seed, step); a resumed run ends with the numbers of an uninterrupted one.
"""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.checkpoints import manifest
from pipeline.config import Config, TrainStage, dump
from pipeline.data import Batch, Prepared, evaluation_batches, open_prepared, train_batches
from pipeline.durations import Pace
from pipeline.engine import Engine, World, agreed
from pipeline.errors import UserError
from pipeline.fingerprint import Fingerprint
from pipeline.flops import Cost, cost
from pipeline.folders import StageFolder, write_text
from pipeline.hardware import describe, peak_of_all_ranks
from pipeline.ledger import Window
from pipeline.progress import Progress
from pipeline.schedules import Rates
from pipeline.streams import derive
from pipeline.versions import installed


@dataclass(frozen=True)
class Job:
    """Everything about a stage that is known before the first step."""

    config: Config
    stage: TrainStage
    folder: StageFolder
    data: Prepared
    model: PretrainedConfig
    cost: Cost
    pace: Pace
    rates: Rates
    start: Path | None

    @property
    def evaluate_every(self) -> int:
        return self.stage.evaluate_every.steps(self.pace)

    @property
    def save_every(self) -> int:
        return self.stage.save_every.steps(self.pace)


def plan(config: Config, stage: TrainStage) -> Job:
    """Resolve a stage: model, FLOPs per step, schedule in steps. Raises UserError."""
    data = open_prepared(config.path / "data")
    folder = StageFolder(config.path / stage.name)
    start = _start(config, stage, folder)
    model = _model_config(config, stage, data, start)
    worth = pace(stage, model, data)
    return Job(config, stage, folder, data, model, _cost(model, data), worth, rates(folder, stage, worth), start)


def _cost(model: PretrainedConfig, data: Prepared) -> Cost:
    return cost(models.table(model), models.of_config(model).positions(model, data.facts))


def pace(stage: TrainStage, model: PretrainedConfig, data: Prepared) -> Pace:
    """What one optimizer step of the stage is worth; its FLOPs are those of training, recomputation included."""
    price = _cost(model, data)
    per_sample = price.train + (price.recompute if stage.activation_checkpointing else 0)
    return Pace(stage.batch, stage.batch * data.facts["tokens_per_sample"], stage.batch * per_sample, data.size)


def rates(folder: StageFolder, stage: TrainStage, worth: Pace) -> Rates:
    """The stage's schedule in steps. A stage that was begun keeps those it began with: a duration in FLOPs would become
    another number of steps under other activation checkpointing. Raises UserError when the schedule does not fit."""
    begun = folder.facts.get("schedule")
    return replace(stage.schedule.resolve(worth), **(begun or {}))


def _start(config: Config, stage: TrainStage, folder: StageFolder) -> Path | None:
    """The checkpoint that the stage began from, as stage.json recorded it; before that, the one to begin from."""
    recorded = folder.facts.get("start")
    return Path(recorded) if recorded else origin(config, stage.start)


def origin(config: Config, name: str | None) -> Path | None:
    """The checkpoint that a stage starts from: an earlier stage's newest, or a folder's. Raises UserError."""
    if name is None:
        return None
    ours = name in {stage.name for stage in config.stages}
    return checkpoints.locate(config.path / name if ours else Path(name))


def _model_config(config: Config, stage: TrainStage, data: Prepared, start: Path | None) -> PretrainedConfig:
    """From scratch by the config's sizes; else the start's own config (an expansion may have changed its epsilon)."""
    sizes = config.models[stage.model]
    wanted = models.trained(sizes, data.facts)
    if start is None:
        return wanted
    newest = manifest.newest(config.path / stage.name / "checkpoints")
    _, held = models.read_config((newest or start) / checkpoints.CONFIG)
    shapes = [{row.name: table.shape(row) for row in table.rows()} for table in (models.table(held), models.table(wanted))]
    if shapes[0] != shapes[1]:
        name = next((n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n)))
        raise UserError(
            f"{start}: '{name}' has shape {shapes[0].get(name)} there and {shapes[1].get(name)} in model '{stage.model}'; "
            f"name the model that was expanded in stages.{stage.name}.model"
        )
    return held


def facts(job: Job, world: World) -> dict:
    """What stage.json says of a training stage."""
    stage, sizes = job.stage, job.config.models[job.stage.model]
    return {
        "kind": "train", "name": stage.name, "model": stage.model, "family": sizes.family,
        "sizes": {"layers": sizes.layers, "hidden": sizes.hidden, "heads": sizes.heads, "mlp": sizes.mlp_units},
        "parameters": models.table(job.model).parameters,
        "origin": stage.start, "start": str(job.start) if job.start else None, "steps": job.rates.steps, "schedule": vars(job.rates),
        "settings": {
            "batch": stage.batch, "micro_batch": stage.micro_batch or stage.batch // world.size, "precision": stage.precision,
            "zero_stage": stage.zero_stage, "world_size": world.size, "optimizer": stage.optimizer.model_dump(mode="json"),
            "activation_checkpointing": stage.activation_checkpointing, "seed": job.config.seed,
        },
        "flops_per_step": {
            "train": stage.batch * job.cost.train,
            "recompute": stage.batch * job.cost.recompute if stage.activation_checkpointing else 0,
        },
        "samples_per_step": stage.batch, "tokens_per_step": job.pace.tokens,
        "device": describe(world.device.type), "versions": installed(), "fingerprint": Fingerprint.of(job.config, stage).settings(),
    }


MAY_CHANGE = ("settings", "flops_per_step", "device", "versions")
"""Facts that a stage may be continued with others of; its fingerprint says which settings may change."""


def continued(recorded: dict, now: dict, step: int) -> dict:
    """The facts of a stage that goes on from `step`: those of `now`, and under `earlier` what others held until then."""
    changed = {key: recorded[key] for key in MAY_CHANGE if key in recorded and recorded[key] != now[key]}
    earlier = recorded.get("earlier", []) + ([{"until_step": step, **changed}] if changed else [])
    kept = {key: now[key] for key in (*MAY_CHANGE, "fingerprint")}
    return {**recorded, **kept, **({"earlier": earlier} if earlier else {})}


def facts_line(job: Job) -> str:
    """The stage in one line, for the terminal."""
    count = models.table(job.model).parameters
    begin = f"from {job.start}" if job.start else "from scratch"
    return f"{count:,} parameters, {begin}, {job.rates.steps} steps of {job.stage.batch} samples, {job.pace.flops * job.rates.steps:.2e} FLOPs"


def run(config: Config, stage: TrainStage, world: World) -> None:
    """Train `stage` to its end on this worker. Raises UserError."""
    job = plan(config, stage)
    resume = agreed(manifest.newest(job.folder.checkpoints))
    engine = _engine(job, world, resume)
    step = manifest.read(resume)["step"] if resume else 0
    if world.first:
        config_file = config.path / "config.yaml"
        if not config_file.exists():
            write_text(config_file, dump(config))
        job.folder.begin(**(continued(job.folder.facts, facts(job, world), step) if resume else facts(job, world)))
        job.folder.checkpoints.mkdir(exist_ok=True)
        manifest.prune(job.folder.checkpoints, stage.keep)
        job.folder.metrics.truncate(step if resume else -1)
        job.folder.ledger.truncate(step if resume else -1)
    Loop(job, engine, world).run(step, resumed=resume is not None)
    if world.first:
        job.folder.finish()


def _engine(job: Job, world: World, resume: Path | None) -> Engine:
    """The engine with the weights it continues from: the stage's own checkpoint, its start, or fresh ones."""
    seed = job.config.seed
    model = models.build(job.model, derive(seed, "init", job.stage.name) % 2**32)
    chosen = resume or job.start
    native = chosen is not None and checkpoints.layout(chosen) != "huggingface" and (resume is not None or _fits(chosen, job.stage, world))
    if world.first and chosen is not None and resume is None and (chosen / manifest.NAME).exists():
        manifest.verify(chosen)
    if chosen and not native:
        state, _ = checkpoints.read(chosen)
        models.fill(model, lambda name: state.tensors[name].open().float())
    engine = Engine(model, job.stage, world, seed, start=chosen if native else None)
    if native:
        engine.load(chosen)
    return engine


def _fits(start: Path, stage: TrainStage, world: World) -> bool:
    """Whether the start is an expansion in this stage's own layout; of any other start only the weights are taken."""
    held = manifest.read(start) if (start / manifest.NAME).exists() else {}
    mine = checkpoints.Format.of(stage, world.size).as_json()
    return held.get("kind") == "expand" and (held["layout"] == "universal" and stage.zero_stage > 0 or all(held.get(k) == v for k, v in mine.items()))


class Loop:
    """The steps of one stage; rank 0 keeps the records."""

    def __init__(self, job: Job, engine: Engine, world: World):
        self.job, self.engine, self.world, self.window = job, engine, world, Window()
        self.shared = {"micro_batch": engine.micro_batch, "rank": world.rank, "world": world.size}
        self.progress = Progress(job.stage.name, job.rates.steps, job.folder.path, job.data.facts["kind"], world.first, job.stage.tensorboard)
        self.peak = peak_of_all_ranks(world.device.type, job.stage.precision)

    def run(self, step: int, resumed: bool) -> None:
        stage, total = self.job.stage, self.job.rates.steps
        batches = train_batches(self.job.data, self.job.config.data, self.job.config.seed, batch=stage.batch, first_step=step, **self.shared)
        with self.progress:
            self.progress.begin(step, self.peak.flops, self.world.size, f"{self.world.device.type} {stage.precision}")
            if not resumed:
                self._evaluate(0)
            while step < total:
                rate = self.job.rates.at(step)
                self._step(batches, step, rate)
                step += 1
                save = step % self.job.save_every == 0 or step == total
                evaluate = step % self.job.evaluate_every == 0 or step == total
                if step % stage.log_every == 0 or save or evaluate:
                    self._record(step, rate)
                if evaluate:
                    self._evaluate(step)
                if save:
                    self._save(step)

    def _step(self, batches: Iterator[Batch], step: int, rate: float) -> None:
        begun = time.perf_counter()
        loss, norm = self.engine.step(list(itertools.islice(batches, self.engine.accumulation)), step, rate)
        self._check(step + 1, loss, norm)
        self.window.add(loss, norm, time.perf_counter() - begun)

    def _check(self, step: int, loss: float, norm: float | None) -> None:
        if not math.isfinite(loss) or (norm is not None and not math.isfinite(norm)):
            raise UserError(f"stage '{self.job.stage.name}': loss {loss}, gradient norm {norm} at step {step}; lower schedule.peak, lengthen the warm-up, or clip")

    def _record(self, step: int, rate: float) -> None:
        """Means over the steps since the last record, and their cost."""
        steps, means = len(self.window), self.window.close()
        if not self.world.first:
            return
        job, speed = self.job, 1 / means["seconds"]
        record = {
            "step": step, "loss": means["loss"], "lr": rate, "grad_norm": means["grad_norm"], "seconds": means["seconds"],
            "samples_per_second": job.pace.samples * speed, "tokens_per_second": job.pace.tokens * speed,
            "mfu": self.peak.utilization(job.stage.batch * job.cost.train * speed), "window": steps,
        }
        job.folder.metrics.append(**record)
        worth = {"samples": steps * job.pace.samples, "tokens": steps * job.pace.tokens}
        job.folder.ledger.append(step=step, kind="train", flops=steps * job.stage.batch * job.cost.train, **worth)
        if job.stage.activation_checkpointing:
            job.folder.ledger.append(step=step, kind="recompute", flops=steps * job.stage.batch * job.cost.recompute, samples=0, tokens=0)
        self.progress.step(record)

    def _evaluate(self, step: int) -> None:
        batches = evaluation_batches(self.job.data, self.job.config.data, self.job.config.seed, **self.shared)
        begun = time.perf_counter()
        result = self.engine.evaluate(batches, self.job.data.facts["kind"])
        seconds = time.perf_counter() - begun
        self._check(step, result["eval_loss"], None)
        if self.world.first:
            count = self.job.data.facts["evaluation"]
            self.job.folder.metrics.append(step=step, **result, evaluation_seconds=seconds)
            tokens = count * self.job.data.facts["tokens_per_sample"]
            self.job.folder.ledger.append(step=step, kind="evaluate", flops=count * self.job.cost.forward, samples=count, tokens=tokens)
            self.progress.evaluation(step, result)

    def _save(self, step: int) -> None:
        job, begun = self.job, time.perf_counter()
        self.engine.save(job.folder.checkpoints, step, {"kind": "train", "provenance": self._provenance() if self.world.first else {}})
        if self.world.first:
            manifest.prune(job.folder.checkpoints, job.stage.keep)
            job.folder.metrics.append(step=step, save_seconds=time.perf_counter() - begun)

    def _provenance(self) -> dict:
        """Where the weights come from and every FLOP spent on them, the origin's included."""
        own = sum(entry["flops"] for entry in self.job.folder.ledger)
        before = _flops_of(self.job.start)
        return {
            "run": self.job.config.name, "stage": self.job.stage.name, "origin": str(self.job.start) if self.job.start else None,
            "own_flops": own, "flops": own + before if isinstance(before, int) else "unknown",
        }


def _flops_of(start: Path | None) -> int | str:
    """FLOPs spent on the weights a stage starts from: none from scratch, unknown for a foreign checkpoint."""
    if start is None:
        return 0
    known = (start / manifest.NAME).exists()
    return manifest.read(start).get("provenance", {}).get("flops", "unknown") if known else "unknown"

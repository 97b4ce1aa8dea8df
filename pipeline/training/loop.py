"""The loop of a training stage, as every worker runs it: resume or start, step, evaluate, save, record."""

import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline import checkpoints, models
from pipeline.checkpoints import manifest, publish
from pipeline.checkpoints.layouts import require_layout
from pipeline.config import dump
from pipeline.config.schema import Config, TrainStage
from pipeline.data import Batch, evaluation_batches, train_batches
from pipeline.errors import UserError
from pipeline.records.run_folder import write_text
from pipeline.records.stage_records import Window
from pipeline.rng import derive
from pipeline.training.engine import Engine, World, agreed
from pipeline.training.hardware import peak_of_all_ranks
from pipeline.training.progress import Progress
from pipeline.training.stage import TrainingPlan, _flops_of, continued, facts, plan_training


def run(config: Config, stage: TrainStage, world: World) -> None:
    """Train `stage` to its end on this worker. Raises UserError."""
    plan = plan_training(config, stage)
    resume = agreed(publish.newest(plan.folder.checkpoints))
    engine = _engine(plan, world, resume)
    step = manifest.read(resume).step if resume else 0
    if world.first:
        config_file = config.path / "config.yaml"
        if not config_file.exists():
            write_text(config_file, dump(config))
        plan.folder.begin(**(continued(plan.folder.facts, facts(plan, world), step) if resume else facts(plan, world)))
        plan.folder.checkpoints.mkdir(exist_ok=True)
        publish.prune(plan.folder.checkpoints, stage.keep)
        plan.folder.metrics.truncate(step if resume else -1)
        plan.folder.ledger.truncate(step if resume else -1)
    Loop(plan, engine, world).run(step, resumed=resume is not None)
    if world.first:
        plan.folder.finish()


def _engine(plan: TrainingPlan, world: World, resume: Path | None) -> Engine:
    """The engine with the weights it continues from: the stage's own checkpoint, its start, or fresh ones."""
    seed = plan.config.seed
    model = models.build(plan.model, derive(seed, "init", plan.stage.name) % 2**32)
    chosen = resume or plan.start
    native = (
        chosen is not None
        and require_layout(chosen).holds_optimizer
        and (resume is not None or _fits(chosen, plan.stage, world))
    )
    if world.first and chosen is not None and resume is None and (chosen / manifest.NAME).exists():
        manifest.verify(chosen)
    if chosen and not native:
        state, _ = checkpoints.read(chosen)
        models.fill(model, lambda name: state.tensors[name].tensor().float())
    engine = Engine(model, plan.stage, world, seed, start=chosen if native else None)
    if native:
        engine.load(chosen)
    return engine


def _fits(start: Path, stage: TrainStage, world: World) -> bool:
    """Whether the start is an expansion in this stage's own layout; of any other start only the weights are taken."""
    content = manifest.read_if_any(start)
    if content is None or content.kind != "expand":
        return False
    stored = checkpoints.CheckpointLayout.from_facts(content.facts())
    return stored.kind.engine_loads(stored, checkpoints.CheckpointLayout.of(stage, world.size))


class Loop:
    """The steps of one stage; rank 0 keeps the records."""

    def __init__(self, plan: TrainingPlan, engine: Engine, world: World):
        self.plan, self.engine, self.world, self.window = plan, engine, world, Window()
        self.shared = {"micro_batch": engine.micro_batch, "rank": world.rank, "world": world.size}
        self.progress = Progress(
            plan.stage.name,
            plan.rates.steps,
            plan.folder.path,
            plan.data.facts["kind"],
            world.first,
            plan.stage.tensorboard,
        )
        self.peak = peak_of_all_ranks(world.device.type, plan.stage.precision)

    def run(self, step: int, resumed: bool) -> None:
        stage, total = self.plan.stage, self.plan.rates.steps
        batches = train_batches(
            self.plan.data,
            self.plan.config.data,
            self.plan.config.seed,
            batch=stage.batch,
            first_step=step,
            **self.shared,
        )
        with self.progress:
            self.progress.begin(step, self.peak.flops, self.world.size, f"{self.world.device.type} {stage.precision}")
            if not resumed:
                self._evaluate(0)
            while step < total:
                rate = self.plan.rates.at(step)
                self._step(batches, step, rate)
                step += 1
                save = step % self.plan.save_every == 0 or step == total
                evaluate = step % self.plan.evaluate_every == 0 or step == total
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
            raise UserError(
                f"stage '{self.plan.stage.name}': loss {loss}, gradient norm {norm} at step {step}; lower schedule.peak, lengthen the warm-up, or clip"
            )

    def _record(self, step: int, rate: float) -> None:
        """Means over the steps since the last record, and their cost."""
        steps, means = len(self.window), self.window.close()
        if not self.world.first:
            return
        plan, speed = self.plan, 1 / means["seconds"]
        record = {
            "step": step,
            "loss": means["loss"],
            "lr": rate,
            "grad_norm": means["grad_norm"],
            "seconds": means["seconds"],
            "samples_per_second": plan.pace.samples * speed,
            "tokens_per_second": plan.pace.tokens * speed,
            "mfu": self.peak.utilization(plan.stage.batch * plan.cost.train * speed),
            "window": steps,
        }
        plan.folder.metrics.append(**record)
        worth = {"samples": steps * plan.pace.samples, "tokens": steps * plan.pace.tokens}
        plan.folder.ledger.append(step=step, kind="train", flops=steps * plan.stage.batch * plan.cost.train, **worth)
        if plan.stage.activation_checkpointing:
            plan.folder.ledger.append(
                step=step, kind="recompute", flops=steps * plan.stage.batch * plan.cost.recompute, samples=0, tokens=0
            )
        self.progress.step(record)

    def _evaluate(self, step: int) -> None:
        batches = evaluation_batches(self.plan.data, self.plan.config.data, self.plan.config.seed, **self.shared)
        begun = time.perf_counter()
        result = self.engine.evaluate(batches, self.plan.data.facts["kind"])
        seconds = time.perf_counter() - begun
        self._check(step, result["eval_loss"], None)
        if self.world.first:
            count = self.plan.data.facts["evaluation"]
            self.plan.folder.metrics.append(step=step, **result, evaluation_seconds=seconds)
            tokens = count * self.plan.data.facts["tokens_per_sample"]
            self.plan.folder.ledger.append(
                step=step, kind="evaluate", flops=count * self.plan.cost.forward, samples=count, tokens=tokens
            )
            self.progress.evaluation(step, result)

    def _save(self, step: int) -> None:
        plan, begun = self.plan, time.perf_counter()
        self.engine.save(
            plan.folder.checkpoints,
            step,
            {"kind": "train", "provenance": self._provenance() if self.world.first else {}},
        )
        if self.world.first:
            publish.prune(plan.folder.checkpoints, plan.stage.keep)
            plan.folder.metrics.append(step=step, save_seconds=time.perf_counter() - begun)

    def _provenance(self) -> dict:
        """Where the weights come from and every FLOP spent on them, the origin's included."""
        own = sum(entry["flops"] for entry in self.plan.folder.ledger)
        before = _flops_of(self.plan.start)
        return {
            "run": self.plan.config.name,
            "stage": self.plan.stage.name,
            "origin": str(self.plan.start) if self.plan.start else None,
            "own_flops": own,
            "flops": own + before if isinstance(before, int) else "unknown",
        }

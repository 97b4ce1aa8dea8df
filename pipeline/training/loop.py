"""The loop of a training stage, as every worker runs it: resume or start, step, evaluate, save, record.

All randomness is a function of (seed, step); a resumed run ends with the numbers of an uninterrupted one.
"""

import logging
import math
import time
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoints import manifest, retention
from pipeline.config import dump, number_formats
from pipeline.data import evaluated, evaluation_batches, evaluation_passes
from pipeline.errors import Preempted, UserError
from pipeline.records.data_position import KEY, DataPosition
from pipeline.records.ledger_check import require_agreement
from pipeline.records.run_folder import StageFolder, write_text
from pipeline.records.stage_facts import ReachedTarget, TrainFacts
from pipeline.records.stage_records import (
    BESIDE,
    EvaluationRecord,
    LedgerEntry,
    MetricsRecord,
    SaveRecord,
    TrainingRecord,
)
from pipeline.training import former_draws, lost_steps, machine_choices, optimizer_kernel, resharded_start, wall_clock
from pipeline.training.data_position import recorded
from pipeline.training.engine import Engine, free
from pipeline.training.hangs.watch import Reached, watched
from pipeline.training.hardware import peak_of_all_ranks
from pipeline.training.length import recorded_facts
from pipeline.training.loss_scale import ScaleAtMinimumError
from pipeline.training.peak_memory import peak_memory
from pipeline.training.preemption import StopRequest
from pipeline.training.process_group import World, of_rank_0
from pipeline.training.progress import Progress
from pipeline.training.resume import newest_whole
from pipeline.training.samples import StepSamples
from pipeline.training.stability import ADVICE, Verdict, overflow, stabilizer_at, stopped_by
from pipeline.training.stage import TrainingPlan, flops_before, plan_training, started, step_flops
from pipeline.training.step_in_flight import AHEAD, StepInFlight, StepResult
from pipeline.training.subject import Subject
from pipeline.training.target import reached_at
from pipeline.training.trackers import Trackers, tracked
from pipeline.training.window import Window

logger = logging.getLogger(__name__)


def run(subject: Subject, world: World, request: StopRequest) -> None:
    """Train a stage to its end on this worker. Raises UserError, and Preempted where it was requested to stop."""
    config, stage = subject.config, subject.stage
    began: float | None = wall_clock.stage_began(StageFolder(config.path / stage.name))
    with watched(config.hang, world, config.path / stage.name) as reached:
        while began is not None:
            began = _until_it_rewinds(subject, world, request, reached, began)
            free()


def _until_it_rewinds(
    subject: Subject, world: World, request: StopRequest, reached: Reached, began: float
) -> float | None:
    """Train from the newest checkpoint. Returns None at the end, else when it is to go on from the newest one again.
    began: when this start began, as `time.perf_counter` has it."""
    resume = newest_whole(StageFolder(subject.config.path / subject.stage.name).checkpoints, world)
    plan = machine_choices.settle(plan_training(subject.config, subject.stage, subject), world)
    engine = _engine(plan, world, resume)
    step = manifest.parse(resume / manifest.NAME).step if resume else 0
    begun = _begin(plan, world, step, resume is not None, began) if world.first else None
    engine.watch.begin(began)
    loop = Loop(plan, engine, world, request, reached)
    ended = loop.run(step, resumed=resume is not None)
    reached.enter(*(("end", plan.rates.steps) if ended else ("start", step)))
    stopped = engine.watch.last
    engine.close()
    if ended and begun is not None:
        plan.folder.finish(begun.model_copy(update={"reached": loop.target}))
        plan.folder.counter.remove()
    return None if ended else stopped


def _begin(plan: TrainingPlan, world: World, step: int, resumed: bool, began: float) -> TrainFacts:
    """Bring the stage's folder to `step`: later metrics and unfinished checkpoints are removed, what was spent behind
    it is lost. Returns the content of stage.json."""
    config_file = plan.config.path / "config.yaml"
    if not config_file.exists():
        write_text(config_file, dump(plan.config))
    earlier, begun = recorded_facts(plan.folder), started(plan, world, step if resumed else None)
    if earlier is not None and resumed:
        former_draws.tell(plan.stage.name, plan.config.data, earlier, step)
    plan.folder.path.mkdir(parents=True, exist_ok=True)
    wall_clock.note_start(plan.folder, began, step if resumed else -1)
    lost_steps.account_for(plan.folder, earlier, step if resumed else -1)
    plan.folder.begin(begun)
    plan.folder.checkpoints.mkdir(exist_ok=True)
    retention.prune(plan.folder.checkpoints, plan.stage.keep)
    plan.folder.metrics.truncate(step if resumed else -1)
    require_agreement(plan.folder.ledger.path, plan.folder.ledger.accounted(), begun, until=step)
    return begun


def _engine(plan: TrainingPlan, world: World, resume: Path | None) -> Engine:
    """The engine with what it continues from: the stage's own checkpoint, or its start."""
    subject, start = plan.subject, plan.start
    kernel = of_rank_0(lambda: optimizer_kernel.of_stage(plan.stage, plan.folder, world.device.type))
    if world.first and resume is None and start and (start / manifest.NAME).exists():
        manifest.verify(start)
    checkpoint = resume
    if start and not resume and of_rank_0(lambda: subject.continues(start, world.size)):
        checkpoint = start
    if checkpoint is None:
        logger.debug(f"{plan.stage.name}: begins from {start or 'fresh weights'}, with a fresh optimizer")
        begun = subject.begun(plan.model, start, plan.stage.attention)
        return Engine(begun, plan.stage, world, plan.config.seed, kernel=kernel)
    place = resharded_start.place(checkpoint, plan.stage, world.size, plan.folder)
    trained = subject.to_load(plan.model, plan.stage.attention)
    engine = Engine(trained, plan.stage, world, plan.config.seed, place, kernel)
    engine.load(place, plan.ramp)
    logger.debug(f"{plan.stage.name}: weights and optimizer are those of {place}")
    return engine


@dataclass(frozen=True)
class BegunStep:
    """A step that the device has to do. step: how many there are with it; began: when, of `time.perf_counter`;
    overflow: the loss scale by which its gradients became infinite, and for which its update was left out."""

    step: int
    began: float
    rate: float
    values: StepInFlight
    overflow: float | None


class Loop:
    """The steps of one stage; rank 0 writes the records."""

    def __init__(self, plan: TrainingPlan, engine: Engine, world: World, request: StopRequest, reached: Reached):
        self.plan, self.engine, self.world, self.request, self.window = plan, engine, world, request, Window()
        self.reached = reached
        reached.work = engine.work
        ranks: dict[str, Any] = {"micro_batch": engine.micro_batch, "rank": world.rank, "world": world.size}
        ranks["device"] = world.device
        self.samples = StepSamples(plan, ranks, engine.accumulation)
        self.evaluation = evaluation_batches(plan.data, plan.config.data, plan.config.seed, **ranks)
        facts, part = plan.data.facts, plan.config.data.evaluate
        self.evaluation_samples = len(evaluated(part, facts["kind"], facts["evaluation"]))
        self.progress = Progress(
            plan.stage.name, plan.rates.steps, plan.folder.path, plan.data.facts["kind"], world.first
        )
        self.trackers = Trackers()
        self.begun: deque[BegunStep] = deque()
        self.ahead = 0 if plan.stage.stability.may_skip else AHEAD[world.device.type]
        self.finished, self.stop = 0.0, False
        self.evaluated: dict[int, dict[str, float]] = {}
        self.at_target = False
        self.target: ReachedTarget | None = None
        self.own_flops = sum(entry.flops for entry in plan.folder.ledger) if world.first else 0
        self.flops = step_flops(plan.stage, plan.model, plan.cost, plan.making, world.size)
        self.peak = peak_of_all_ranks(world.device.type, plan.stage.precision, plan.stage.products)

    def run(self, step: int, resumed: bool) -> bool:
        """Train from `step` on. Returns whether the stage has ended; it has not where it is to go back to its newest
        checkpoint."""
        stage, total = self.plan.stage, self.plan.rates.steps
        self.stabilizer, self.saved = stabilizer_at(self.plan, step), step
        with self._tracked(step if resumed else -1) as self.trackers, self.progress, self.engine.saving.settled():
            device = f"{self.world.device.type} {number_formats.words(stage)}"
            self.progress.begin(step, self.peak.flops, self.world.size, device)
            self._spent(step, "start")
            self._begin(step, resumed)
            while step < total and not self.at_target:
                self._begin_step(step)
                step += 1
                save, evaluate = step % self.plan.save_every == 0, step % self.plan.evaluate_every == 0
                if self._catch_up(all_of_them=save or evaluate or step == total):
                    self._publish(step)
                    return False
                if evaluate or step == total:
                    self._evaluate(step)
                if save or step == total or self.stop or self.at_target:
                    self._save(step)
                if self.stop or step == total or self.at_target:
                    self._publish(step)
                else:
                    self._record_saves()
                if self.stop and step < total and not self.at_target:
                    logger.info(f"{stage.name}: asked to stop, saved at step {step} of {total}")
                    raise Preempted(f"stage '{stage.name}' stopped at step {step} of {total}, which is saved")
            self._tell_target(step)
        return True

    def _tracked(self, step: int) -> AbstractContextManager[Trackers]:
        """The trackers of a stage that goes on from `step`; none on other ranks than the first."""
        plan = self.plan
        names = plan.stage.tracked_by if self.world.first else ()
        return tracked(plan.folder, names, plan.config.name, plan.data.facts["kind"], step)

    def _begin(self, step: int, resumed: bool) -> None:
        """Evaluate what a stage begins with, which may end it; one that goes on may have been evaluated at its end."""
        target, folder = self.plan.target, self.plan.folder
        if resumed:
            self.at_target = target is not None and of_rank_0(lambda: reached_at(folder, target, step) is not None)
            return
        self._evaluate(0)
        if self.at_target:
            self._save(0)
            self._publish(0)

    def _tell_target(self, step: int) -> None:
        """Say which target has ended the stage, and what training to it has cost."""
        if self.world.first and (target := reached_at(self.plan.folder, self.plan.target, step)):
            self.target = target
            self.progress.ended(step, f"{target.words}, after {target.flops:.4g} FLOPs of training")

    def _begin_step(self, step: int) -> None:
        self.reached.enter("step", step + 1)
        began, reason = time.perf_counter(), self.request.reason
        batches = self.samples.of(self.stabilizer.order.data_step(step))
        refuses = self.stabilizer.refuses if self.plan.stage.stability.may_skip else None
        stop = reason is not None or self.engine.saving.failed
        rate = self.plan.rates.at(step)
        try:
            values = self.engine.begin_step(batches, step, rate, stop=stop, refuses=refuses)
        except ScaleAtMinimumError:  # what has been computed counts
            self._finish_in_vain()
            if self.world.first:
                self.plan.folder.counter.write(step + 1)
            raise
        self.begun.append(BegunStep(step + 1, began, rate, values, self.engine.loss_scale.overflowed))

    def _catch_up(self, all_of_them: bool) -> bool:
        """Read the steps that were begun, but for those that the device may be behind; all of them where any rank was
        asked to stop. Returns whether the stage is to go back to its newest checkpoint."""
        while len(self.begun) > (0 if all_of_them or self.stop else self.ahead):
            done = self.begun.popleft()
            result = self._finish(done)
            if self._judge(done, result):
                return True
            last = not self.begun and (all_of_them or self.stop)
            if last or done.step % self.plan.stage.log_every == 0:
                self._record(done.step, done.rate)
        return False

    def _finish(self, done: BegunStep) -> StepResult:
        result = done.values.finish()
        if self.world.first:
            self.plan.folder.counter.write(done.step)
        now = time.perf_counter()
        self.window.add(result.loss, result.norm, now - max(done.began, self.finished))
        self.finished, self.stop = now, self.stop or result.stops
        return result

    def _judge(self, done: BegunStep, result: StepResult) -> bool:
        """Whether the stage is to go back. Raises UserError where it is to end."""
        if done.overflow is not None:
            return self._acted_on(overflow(done.step, done.overflow))
        verdict = self.stabilizer.judge(done.step, result.loss, result.norm, self.saved)
        if verdict is None:
            return False
        if verdict.refusal or verdict.action == "rewind":
            self._finish_in_vain()
        if verdict.refusal:
            self._note(verdict)
            raise stopped_by(self.plan.stage.name, verdict, result.loss, result.norm)
        return self._acted_on(verdict)

    def _finish_in_vain(self) -> None:
        """What was begun behind a step that is out of bounds was computed, too."""
        while self.begun:
            self._finish(self.begun.popleft())

    def _acted_on(self, verdict: Verdict) -> bool:
        """Record an event; whether the stage is to go back: to a checkpoint that is there, whatever was in flight."""
        if verdict.action == "rewind":
            self.reached.enter("publication", verdict.event.step)
            self.engine.saving.finish()
            self._record_saves()
        self._note(verdict)
        self._spent(verdict.event.step, "other")
        return verdict.action == "rewind"

    def _note(self, verdict: Verdict) -> None:
        if self.world.first:
            self.plan.folder.events.add(verdict.event)
            self.progress.warn(f"{self.plan.stage.name}: {verdict.words}")

    def _spent(self, step: int, kind: str) -> None:
        """Record where the time went; what was done since the last lap was of this kind."""
        self.engine.watch.lap(kind)
        seconds = self.engine.watch.take()
        if compiled := seconds.get("compile"):
            self.progress.say(f"{self.plan.stage.name}: compiled its layers in {compiled:.1f} s")
        if self.world.first:
            wall_clock.note_spent(self.plan.folder, step, seconds, self.engine.watch.last)

    def _record(self, step: int, rate: float) -> None:
        """Means over the steps since the last record, and their cost."""
        means = self.window.close()
        self._spent(step, "other")
        if not self.world.first:
            return
        plan, speed = self.plan, 1 / means.seconds
        record = TrainingRecord(
            step=step,
            loss=means.loss,
            lr=rate,
            grad_norm=means.grad_norm,
            seconds=means.seconds,
            samples_per_second=plan.pace.samples * speed,
            tokens_per_second=plan.pace.tokens * speed,
            mfu=self.peak.utilization(plan.stage.batch * plan.cost.train * speed),
            window=means.steps,
        )
        self._measured(record)
        self._spend_on_steps(step, means.steps)
        self.progress.step(record)

    def _measured(self, record: MetricsRecord) -> None:
        """Record what was measured, and tell the trackers."""
        self.plan.folder.metrics.append(record)
        self.trackers.add(record)

    def _spend_on_steps(self, step: int, count: int) -> None:
        """Record what the last `count` steps have cost."""
        samples, tokens = count * self.plan.stage.batch, count * self.plan.pace.tokens
        besides = {kind: count * getattr(self.flops, kind) for kind in BESIDE}
        self._spend(
            LedgerEntry(step=step, kind="train", flops=count * self.flops.train, samples=samples, tokens=tokens),
            *(
                LedgerEntry(step=step, kind=kind, flops=flops, samples=0, tokens=0)
                for kind, flops in besides.items()
                if flops
            ),
        )

    def _spend(self, *entries: LedgerEntry) -> None:
        """Record what was spent, all of it or nothing."""
        self.plan.folder.ledger.append(*entries)
        self.own_flops += sum(entry.flops for entry in entries)

    def _evaluate(self, step: int) -> None:
        self.reached.enter("evaluation", step)
        data = self.plan.data
        begun = time.perf_counter()
        result = self.engine.evaluate(self.evaluation, data.facts["kind"])
        seconds = time.perf_counter() - begun
        if not math.isfinite(result["eval_loss"]):
            raise UserError(
                f"stage '{self.plan.stage.name}': evaluation loss {result['eval_loss']} at step {step}; {ADVICE}"
            )
        self.evaluated = {step: {retention.EVALUATION: result["eval_loss"]}}
        self.at_target = self.plan.target is not None and self.plan.target.met_by(result)
        if self.world.first:
            self._measured(_evaluation_record(step, result, seconds, peak_memory(self.world.device)))
            samples = self.evaluation_samples
            tokens = samples * data.facts["tokens_per_sample"]
            flops = samples * self.plan.cost.forward
            entries = [LedgerEntry(step=step, kind="evaluate", flops=flops, samples=samples, tokens=tokens)]
            if making := self.plan.making.forward:
                made = making * evaluation_passes(samples, self.engine.micro_batch, self.world.size)
                entries += [LedgerEntry(step=step, kind="evaluate-make", flops=made, samples=0, tokens=0)]
            self._spend(*entries)
            self.progress.evaluation(step, result)
        self._spent(step, "evaluate")

    def _save(self, step: int) -> None:
        self.reached.enter("publication", step)
        self.engine.saving.make_room()
        self.reached.enter("save", step)
        folder, facts = self.plan.folder, {"kind": self.plan.stage.kind, **self.evaluated.get(step, {})}
        if self.world.first:
            facts["provenance"] = self._provenance(step)
            folder.recent.append(self.stabilizer.recent(step))
        how = {"before": self._sync, "behind": self._tidy, "algorithm": self.plan.config.hash}
        self.engine.save(folder.checkpoints, step, facts, **how)
        self.saved = step
        self._spent(step, "save")

    def _publish(self, step: int) -> None:
        """Wait until what is being saved is published."""
        self.reached.enter("publication", step)
        self.engine.saving.finish()
        self._record_saves()

    def _sync(self) -> None:
        """A checkpoint whose records are lost could not be accounted for."""
        for records in (self.plan.folder.metrics, self.plan.folder.ledger, self.plan.folder.recent):
            records.sync()

    def _tidy(self) -> None:
        retention.prune(self.plan.folder.checkpoints, self.plan.stage.keep)
        resharded_start.remove(self.plan.folder)

    def _record_saves(self) -> None:
        for save in self.engine.saving.published():
            step = save.publication.facts["step"]
            self._measured(SaveRecord(step=step, save_seconds=save.pause, published_seconds=save.seconds))

    def _provenance(self, step: int) -> dict[str, Any]:
        """Where the weights come from, how far the data are read, and every FLOP spent on them, the origin's and lost
        ones included."""
        own, plan = self.own_flops, self.plan
        before = flops_before(plan.start)
        read = plan.first_sample + self.stabilizer.order.read_before(step) * plan.stage.batch
        position = DataPosition.of(read, plan.data.facts, plan.config.seed, plan.config.data.repeats)
        return {
            "run": plan.config.name,
            "stage": plan.stage.name,
            "origin": str(plan.start) if plan.start else None,
            "own_flops": own,
            "flops": "unknown" if before is None else own + before,
            KEY: position.behind(recorded(plan.start)).as_json(),
        }


def _evaluation_record(step: int, result: dict[str, float], seconds: float, memory: int | None) -> EvaluationRecord:
    return EvaluationRecord(
        step=step,
        eval_loss=result["eval_loss"],
        perplexity=result.get("perplexity"),
        top1=result.get("top1"),
        evaluation_seconds=seconds,
        peak_memory=memory,
    )

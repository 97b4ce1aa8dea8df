"""The target of a training stage (config/stop.py): which evaluation ends the stage, and which one has."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.accounting.totals import training_flops
from pipeline.config.schema import Config, TrainStage
from pipeline.config.stop import Measure
from pipeline.errors import UserError
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import ReachedTarget
from pipeline.records.stage_records import EvaluationRecord


@dataclass(frozen=True)
class Target:
    """value: a loss in nats or a share from 0 to 1."""

    measure: Measure
    value: float

    def met_by(self, measured: Mapping[str, float | None]) -> bool:
        """Whether an evaluation is at or beyond it."""
        value = measured.get(self.measure)
        return value is not None and (value >= self.value if self.measure == "top1" else value <= self.value)


def target_of(config: Config, stage: TrainStage) -> Target | None:
    """That of a stage, a name resolved to the last evaluation of the stage that it names. Raises UserError where that
    stage has not ended."""
    if stage.stop is None:
        return None
    measure, value = stage.stop.measure, stage.stop.value
    return Target(measure, value if isinstance(value, float) else _last_of(config, value, measure))


def _last_of(config: Config, name: str, measure: Measure) -> float:
    folder = StageFolder(config.path / name)
    evaluation = last_evaluation(folder)
    value = getattr(evaluation, measure) if evaluation and folder.finished else None
    if value is None:
        raise UserError(
            f"{folder.path}: the stage has not ended, and its last evaluation is the target of another one; finish it "
            f"first: lemon train {config.path / 'config.yaml'} --stage {name}"
        )
    return float(value)


def last_evaluation(folder: StageFolder) -> EvaluationRecord | None:
    """The newest one that a stage has recorded."""
    evaluations = [record for record in folder.metrics if isinstance(record, EvaluationRecord)]
    return evaluations[-1] if evaluations else None


def reached_at(folder: StageFolder, target: Target | None, step: int) -> ReachedTarget | None:
    """The target with the evaluation at `step` that reached it and what training has cost until then; None where none
    did."""
    last = last_evaluation(folder)
    if target is None or last is None or last.step != step or not target.met_by(vars(last)):
        return None
    flops = training_flops(folder.ledger.accounted(), step)
    value = getattr(last, target.measure)
    return ReachedTarget(step=step, measure=target.measure, target=target.value, value=value, flops=flops)

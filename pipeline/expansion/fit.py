"""Fitting a learned growth method: its coefficients are trained as a model is, by the target's own loss, while the
source stays as it is.

What is trained is a `GrownModel`, by the loop and the engine of every training stage: on all ranks, with checkpoints,
records and a resume like any other. The weights of a layer are made from the coefficients when the layer runs.
"""

import json
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.accounting.totals import training_flops
from pipeline.checkpoints import manifest, publish
from pipeline.config.schema import Config, ExpandStage, FitStage, TrainStage
from pipeline.data import Prepared, data_of
from pipeline.errors import UserError
from pipeline.expansion import fitted as fitted_by
from pipeline.expansion import planning
from pipeline.expansion import target as targets
from pipeline.expansion.fitted import UNFITTED, Fitted, coefficients_of
from pipeline.expansion.planning import Ends
from pipeline.growth import methods
from pipeline.growth.grown_model import GrownModel
from pipeline.growth.making import MakingCost, making_cost
from pipeline.growth.method import ExpansionOptions
from pipeline.growth.plan import GrowthPlan
from pipeline.models import starts
from pipeline.models.config_keys import BRANCH_AND_LAYER_DROPS
from pipeline.optim.parameter_groups import GroupRule
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import TrainFacts
from pipeline.records.stage_records import EvaluationRecord
from pipeline.training.process_group import of_rank_0
from pipeline.training.stage import start_of
from pipeline.training.start import origin
from pipeline.training.subject import Subject, Trained, WholeModel

logger = logging.getLogger(__name__)


def subject(config: Config, stage: TrainStage) -> Subject:
    """What a training stage trains."""
    return Fit(config, stage) if isinstance(stage, FitStage) else WholeModel(config, stage)


def target(config: Config, stage: FitStage, data: Prepared) -> PretrainedConfig:
    """The target's config, with the dropout of the fit. Raises UserError."""
    if stage.target:
        _, wanted = models.read_config(config.path / stage.target)
    else:
        _, small = models.read_config(checkpoints.config_file(checkpoints.locate(_source(config, stage))))
        wanted = targets.of_sizes(small, config.models[stage.model], data.facts)
    if stage.dropout is not None:
        family = models.of_config(wanted)
        wanted.update(dict.fromkeys(family.keys.dropout, stage.dropout))
        wanted.update({key: 0.0 for key in BRANCH_AND_LAYER_DROPS if key in family.keys.training})
    return wanted


def _source(config: Config, stage: FitStage) -> Path:
    """The checkpoint that a fit began with: of a stage of the run its last one, for a run may be moved; of a folder the
    one that was recorded, for it may have got newer ones. Raises UserError."""
    recorded = None if stage.source in {each.name for each in config.stages} else start_of(config, stage)
    return recorded or origin(config, stage.source)


class Fit(Subject):
    """The coefficients of a growth."""

    stage: FitStage

    @cached_property
    def ends(self) -> Ends:
        """The source that the fit began with, and the target. No weight is read."""
        data, source = data_of(self.config, self.stage), _source(self.config, self.stage)
        config = Path(self.stage.source_config) if self.stage.source_config else None
        return planning.both_ends(source, target(self.config, self.stage, data), self.config.seed, config)

    @cached_property
    def options(self) -> ExpansionOptions:
        return methods.parse(self.stage.method.name, self.stage.method.options, self.config.seed)

    @cached_property
    def growth(self) -> GrowthPlan:
        """As the fit begins, differentiable."""
        return self.ends.plan(self.options, self.ends.begun_module(self.options))

    def model(self, data: Prepared, start: Path | None) -> PretrainedConfig:
        """Raises UserError for a target that has no loss on the run's data."""
        large = self.ends.settled(self.growth)
        require_loss(self.stage, large, data)
        return large

    def making(self) -> MakingCost:
        return making_cost(self.growth)

    def coefficients(self) -> int:
        return coefficients_of(self.ends.begun_module(self.options))

    def continues(self, start: Path, ranks: int) -> bool:
        """The coefficients begin anew, whatever the source holds."""
        return False

    def to_load(self, model: PretrainedConfig, attention: str = "sdpa") -> Trained:
        """All coefficients are decayed alike. Raises UserError where the source has changed since the fit began."""
        known = of_rank_0(self._same_source)
        source = {name: planning.weight(self.ends.state, name) for name in self.ends.state.tensors}
        module = self.ends.begun_module(self.options)
        grown = GrownModel((self.ends.small, model), self.options, module, source, attention)
        beside = {fitted_by.FACTS: json.dumps({"source": known, **self._facts()}, indent=2) + "\n"}
        groups = ((GroupRule(decayed=True), dict(grown.named_parameters())),)
        return Trained(grown, groups, lambda: beside, grown.layers)

    def begun(self, model: PretrainedConfig, start: Path | None, attention: str = "sdpa") -> Trained:
        return self.to_load(model, attention)

    def _same_source(self) -> dict[str, Any]:
        """What the manifest of a result will say of the source, every byte hashed. Raises UserError where a checkpoint
        of the fit says otherwise."""
        now = fitted_by.source_facts(self.ends.folder, self.config.hash)
        if newest := publish.newest(self.config.path / self.stage.name / "checkpoints"):
            fitted_by.require_same_source(newest, now)
        return now

    def _facts(self) -> dict[str, Any]:
        """For who looks into the folder."""
        method = {"name": self.options.method, **self.options.options.model_dump()}
        sizes = {name: list(sizes) for name, sizes in self.growth.sizes.items()}
        return {"method": method, "seed": self.options.seed, "sizes": sizes}


def require_loss(stage: FitStage, large: PretrainedConfig, data: Prepared) -> None:
    """Raises UserError for a target that has no loss on the run's data."""
    if reason := starts.unreadable(large, data.facts):
        raise UserError(f"stages.{stage.name}: cannot be fitted on these data: {reason}")


def of_expansion(config: Config, stage: ExpandStage) -> FitStage | None:
    """The stage in which an expansion's method is fitted; None where it learns nothing, or stays as it starts. Raises
    UserError."""
    fits = methods.is_learned(stage.method.name) and (stage.fit is None or stage.fit.steps)
    return config.fit_of(stage) if fits else None


def fitted(config: Config, stage: ExpandStage) -> Fitted | None:
    """What the fit of an expansion has left; None where its method learns nothing. Raises UserError where its loss
    ended above its start, and that is not accepted."""
    if not methods.is_learned(stage.method.name):
        return None
    fit = of_expansion(config, stage)
    return _ended(config, fit) if fit else UNFITTED


def unfinished(config: Config, stage: ExpandStage) -> FitStage | None:
    """The same stage as `of_expansion`, where the expansion is still to be done, or the fit has begun."""
    names = stage.name, stage.fit_name
    done, begun = StageFolder(config.path / names[0]).finished, StageFolder(config.path / names[1]).facts
    return None if done and begun is None else of_expansion(config, stage)


def _ended(config: Config, stage: FitStage) -> Fitted:
    folder = StageFolder(config.path / stage.name)
    losses = [record.eval_loss for record in folder.metrics if isinstance(record, EvaluationRecord)]
    checkpoint, facts = publish.newest(folder.checkpoints), folder.facts
    if checkpoint is None or not losses or not isinstance(facts, TrainFacts) or not _is_the_end(checkpoint, facts):
        raise UserError(f"{folder.path}: what the fit has left is gone; remove the folder to fit it anew")
    logger.info(f"{stage.name}: evaluation loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    if not losses[-1] <= losses[0] and not stage.accept:
        raise UserError(
            f"{folder.path}: the fit ended at an evaluation loss of {losses[-1]:.4f}, above its start {losses[0]:.4f}, "
            "and nothing was published; lower the fit's peak or take other steps, and remove the folder; or publish it "
            "all the same (accept: true among the keys of the fit)"
        )
    ledger = folder.ledger.accounted()
    spent = {"flops": sum(entry.flops for entry in ledger), "training_flops": training_flops(ledger, facts.steps)}
    return Fitted(checkpoint, {"steps": facts.steps, "loss": [losses[0], losses[-1]], **spent}, _source(config, stage))


def _is_the_end(checkpoint: Path, facts: TrainFacts) -> bool:
    return bool(manifest.read(checkpoint).step == facts.steps)

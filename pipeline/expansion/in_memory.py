"""Growing a model that is in memory: `pipeline.grow`."""

import copy
import logging
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from pipeline import models
from pipeline.checkpoints import narrowing, poolers, tying
from pipeline.checkpoints.state import State
from pipeline.checkpoints.tensors import in_memory
from pipeline.errors import UserError
from pipeline.expansion import embedding_scales
from pipeline.expansion import target as targets
from pipeline.expansion.expand import judge
from pipeline.growth import methods
from pipeline.growth.activations import ProbedSource
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.plan import GrowthPlan, plan_growth
from pipeline.growth.verification.equivalence import verify
from pipeline.models.streaming import LoadedModel

logger = logging.getLogger(__name__)


@torch.inference_mode(False)
@torch.enable_grad()
def grow_model(
    model: PreTrainedModel, target: PretrainedConfig, method: str, options: Mapping[str, object], seed: int
) -> PreTrainedModel:
    """A model of the sizes of `target` that computes what `model` computes, in float32 on the CPU, in the same mode
    (training or evaluation), with its generation config, frozen where it is. What else the model holds is named. Raises
    UserError when the method cannot, or claims to be lossless and is not."""
    function = LoadedModel(model)
    small, where = function.config, "the config"
    decided = poolers.remarks(model.config, small, where)
    if differ := _different_from_their_owners(model, small):
        decided[tying.KEY] = tying.remark(differ, models.architecture_of(small).aliases, where)
        small, target = tying.untied(small), tying.untied(target)
    source, large = _Parameters(model, small), targets.adopt(small, target)
    for line in (*decided.values(), *_left_behind(model, small, source)):
        logger.warning(f"grow: {line}")
    architectures = models.architecture_of(small), models.architecture_of(large)
    growth_options = methods.parse(method, options, seed)
    probed = ProbedSource(small, source.whole, seed)
    plan = plan_growth(*architectures, growth_options, models.initializer_range(large), probed)
    for line in embedding_scales.remarks(plan, {model.dtype}):
        logger.warning(f"grow: {line}")
    large = targets.settled(small, large, plan, getattr(target, models.LAYER_TYPES, None))
    grown = dict(PlanExecutor(plan, torch.float32).tensors(source.rows))
    result = models.fill(models.build(large), grown.__getitem__)
    judge(plan, verify(function, LoadedModel(result), plan))
    _carry(model, result, plan)
    return result.train(model.training)


def _left_behind(model: PreTrainedModel, config: PretrainedConfig, source: "_Parameters") -> list[str]:
    """What the grown model does not hold, in words: what was registered besides a model of its class, and what float32
    cannot hold."""
    fresh = models.build(config, device="meta")
    own, known = ({name for name, _ in (*_parameters(each).items(), *each.named_buffers())} for each in (model, fresh))
    besides = ", ".join(sorted(own - known))
    lines = [f"no part of a {type(model).__name__} and left behind: {besides}"] if besides else []
    lines += [
        f"{' and '.join(map(repr, names))} are one parameter and become {len(names)}" for names in source.shared()
    ]
    return lines + list(narrowing.said("the model", State(in_memory(source.parameters.items()))).unread)


def _carry(model: PreTrainedModel, result: PreTrainedModel, plan: GrowthPlan) -> None:
    """Give `result` the generation config of `model`, and freeze of it what comes from frozen parameters."""
    if getattr(model, "generation_config", None) is not None:
        result.generation_config = copy.deepcopy(model.generation_config)
    names = [{row.name: row.module_name for row in each.rows()} for each in (plan.source, plan.target)]
    before, after = _parameters(model), _parameters(result)
    for each in plan.tensors:
        if each.origin is not None:
            after[names[1][each.target]].requires_grad_(before[names[0][each.origin]].requires_grad)


def _different_from_their_owners(model: PreTrainedModel, config: PretrainedConfig) -> tuple[str, ...]:
    """The names that the config calls tied and that have numbers of their own, as `from_pretrained` leaves a model
    whose files hold both."""
    held = _parameters(model)
    return tuple(
        alias
        for alias, owner in models.architecture_of(config).aliases.items()
        if held[alias] is not held[owner] and not torch.equal(held[alias], held[owner])
    )


def _parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    """Every name of a parameter, tied ones too."""
    return dict(model.named_parameters(remove_duplicate=False))


class _Parameters:
    """A model's parameters by published name, in float32 on the CPU."""

    def __init__(self, model: PreTrainedModel, config: PretrainedConfig):
        """Raises UserError for a model that lacks one."""
        held, rows = _parameters(model), [*models.architecture_of(config).rows()]
        if absent := [row.module_name for row in rows if row.module_name not in held]:
            raise UserError(
                f"the model has no parameter '{absent[0]}' ({len(absent)} absent), which its config says that a "
                f"{type(model).__name__} has: it was changed behind its construction; give it the config it now is of"
            )
        self.parameters: dict[str, Tensor] = {param.name: held[param.module_name].detach() for param in rows}

    def shared(self) -> list[list[str]]:
        """The names that the config takes for several parameters and that are one."""
        names: dict[int, list[str]] = {}
        for name, parameter in self.parameters.items():
            names.setdefault(parameter.data_ptr(), []).append(name)
        return [each for each in names.values() if len(each) > 1]

    def whole(self, name: str) -> Tensor:
        return self.parameters[name].to("cpu", torch.float32)

    def rows(self, name: str, rows: range) -> Tensor:
        part: Tensor = self.whole(name)[rows.start : rows.stop]
        return part

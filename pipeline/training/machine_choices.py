"""What `auto` leaves open in a stage is settled where the stage begins, by all its ranks together."""

import logging
from dataclasses import replace
from typing import Any

from pipeline import models
from pipeline.training import attention, compilation, hardware, largest_micro_batch
from pipeline.training.process_group import World, of_rank_0
from pipeline.training.settled import BEFORE
from pipeline.training.stage import TrainingPlan

logger = logging.getLogger(__name__)

RECORDED = ("rates", "start", "target", "first_sample")
"""Of a plan, what may come from records of the run."""


def settle(plan: TrainingPlan, world: World) -> TrainingPlan:
    """The plan with nothing left open: as recorded when the stage began, else by what these devices do best. To be
    called by all ranks at once. Raises UserError where they cannot do what was recorded or asked for."""
    hardware.multiply_in(plan.stage.products)  # what is measured is what trains
    plan = largest_micro_batch.settled(_attending(_as_rank_0_reads_it(plan)), world)
    chosen: dict[str, Any] = of_rank_0(lambda: {key: getattr(plan.stage, key) for key in BEFORE})
    if chosen["attention"] == "auto":
        choice = attention.choose(plan, world)
        chosen["attention"] = choice.attention
        logger.info("%s: attention %s: %s", plan.stage.name, choice.attention, choice.reason)
    if chosen["compile"] == "auto":
        chosen["compile"] = compilation.choose(world.device, plan.stage.zero_stage)
    elif chosen["compile"]:
        compilation.require(plan.stage, world.device)
    if chosen["compile"]:
        logger.info("%s: its layers are compiled, each when it first runs", plan.stage.name)
    return replace(plan, stage=plan.stage.model_copy(update=chosen))


def _attending(plan: TrainingPlan) -> TrainingPlan:
    """With plain attention where the model computes with no other. Raises UserError where the fused kernels are asked
    for."""
    if models.attention_of(plan.model) == "sdpa":
        return plan
    attention.require_possible(plan.stage, plan.model)
    return replace(plan, stage=plan.stage.model_copy(update={"attention": "eager"}))


def _as_rank_0_reads_it(plan: TrainingPlan) -> TrainingPlan:
    """With what the plan has from records of the run, which a shared file system may show to other nodes as they were
    before."""
    recorded: dict[str, Any] = of_rank_0(lambda: {key: getattr(plan, key) for key in RECORDED})
    size = of_rank_0(lambda: plan.stage.micro_batch)
    return replace(plan, stage=plan.stage.model_copy(update={"micro_batch": size}), **recorded)

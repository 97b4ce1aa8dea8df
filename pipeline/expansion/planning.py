"""What an expansion is to do, decided before a tensor is read: its two ends, the growth between them, the optimizer
groups of the result."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.checkpoints import CheckpointLayout, loader, tying
from pipeline.checkpoints.layouts import LAYOUTS
from pipeline.checkpoints.state import State
from pipeline.errors import UserError, placed
from pipeline.expansion import embedding_scales, groups
from pipeline.expansion import target as targets
from pipeline.expansion.fitted import Fitted
from pipeline.expansion.groups import NO_GROUPS, Grouping
from pipeline.expansion.operator import Operator
from pipeline.growth import new_entries, optimizer_state
from pipeline.growth.activations import ProbedSource
from pipeline.growth.method import ExpansionOptions, GrowthModule
from pipeline.growth.new_entries import NewEntries
from pipeline.growth.plan import GrowthPlan, begun_module, plan_growth
from pipeline.models.architecture import Architecture
from pipeline.models.streaming import RunnableModel
from pipeline.optim.optimizers import AdamW, OptimizerSpec, Slot
from pipeline.records.stage_facts import NEW_ENTRIES, OptimizerState

COUNTED_ALIKE = (
    "the optimizer's count of steps is the source's, and new entries have seen none of them: a training of lemon reads "
    "that from the checkpoint, and corrects their first updates; with a script of your own these are too large"
)


@dataclass(frozen=True)
class ExpansionPlan:
    """An expansion that has been planned and not yet done. function: the source, as it runs. moments: what becomes of
    the optimizer state. continued_by: the optimizer of the training that goes on from the result;
    None: not known, the source's is written. grouping: the result's optimizer groups. fitted: of a learned method.
    operator: where the growth is that of an earlier expansion."""

    source: Path
    state: State
    function: RunnableModel
    small: PretrainedConfig
    large: PretrainedConfig
    growth: GrowthPlan
    layout: CheckpointLayout
    moments: OptimizerState = "reset"
    continued_by: OptimizerSpec | None = None
    grouping: Grouping = NO_GROUPS
    fitted: Fitted | None = None
    operator: Operator | None = None

    @property
    def optimizer(self) -> OptimizerSpec:
        """The optimizer that the result has state of: the source's where it goes on, else a fresh one. Raises UserError
        for one to go on that is not known."""
        if self.moments != "reset":
            return self.state.optimizer()
        return self.continued_by or self.state.known_optimizer or AdamW()

    @property
    def carried(self) -> dict[str, Any]:
        """What of the source's engine and script goes along: schedule, counters, client state and loss scale, where
        its own training goes on with the grown optimizer state."""
        goes_on = self.moments != "reset" and self.continued_by is None
        return {"engine": self.state.engine, "scaling": self.state.scaling} if goes_on else {}

    @property
    def new_entries(self) -> tuple[NewEntries, ...]:
        """The growths through which the optimizer state has come, each with the entries that it added. Raises
        UserError."""
        if self.moments == "reset":
            return ()
        with placed(str(self.source)):
            before = new_entries.read(self.state.engine)
            for each in before:
                each.require_fitting(self.growth.source)
        carried = (new_entries.carried(each, self.growth, self.moments == "grow") for each in before)
        growths = tuple(each for each in carried if each.kept)
        if self.moments == "grow":
            return growths
        return (*growths, new_entries.of_growth(self.growth, self.state.step, self.state.counted))

    @property
    def left_behind(self) -> list[str]:
        """Of the source, for the manifest: tensors by name, all else in words."""
        return [*self.state.left_behind, *self.state.unread, *self.of_the_script, *self.state.of_the_buffers()]

    @property
    def remarks(self) -> list[str]:
        """What the result does not hold, or a reader must know, in words."""
        grouped = [self.grouping.remark] if self.grouping.remark else []
        counted = [COUNTED_ALIKE] if self.moments == "asymmetric" and self.continued_by is None else []
        return [*self.state.remarks(), *self.of_the_script, *self.state.of_the_buffers(), *grouped, *counted]

    @property
    def of_the_script(self) -> list[str]:
        return [] if self.carried else self.state.of_the_script()


@dataclass(frozen=True)
class Ends:
    """A source and the target's config before the growth between them is planned. model: the source, for a method that
    decides by it. stated: the types of layers that the user's target names."""

    folder: Path
    state: State
    function: RunnableModel
    small: PretrainedConfig
    large: PretrainedConfig
    model: ProbedSource
    stated: list[str] | None

    @property
    def architectures(self) -> tuple[Architecture, Architecture]:
        return models.architecture_of(self.small), models.architecture_of(self.large)

    @property
    def init_std(self) -> float:
        return models.initializer_range(self.large)

    def begun_module(self, options: ExpansionOptions) -> GrowthModule:
        """The module of a learned method, before it is fitted. Raises UserError."""
        return begun_module(*self.architectures, options, self.model)

    def plan(self, options: ExpansionOptions, module: GrowthModule | None = None) -> GrowthPlan:
        """Raises UserError when the growth cannot be done as the method promises."""
        return plan_growth(*self.architectures, options, self.init_std, self.model, module)

    def settled(self, growth: GrowthPlan) -> PretrainedConfig:
        """The target's config with what the plan decides."""
        return targets.settled(self.small, self.large, growth, self.stated)


def both_ends(source: Path, target: PretrainedConfig, seed: int, source_config: Path | None = None) -> Ends:
    """Open a source, and adopt a target's sizes. No tensor is read. Raises UserError."""
    folder = checkpoints.locate(source)
    config = checkpoints.config_file(folder, source_config)
    state, small = checkpoints.read(folder, config)
    function = loader.runnable(folder, state, small, config)
    large = targets.adopt(small, tying.untied(target) if tying.KEY in state.decided_by_files else target)
    model = ProbedSource(small, partial(weight, state), seed)
    return Ends(folder, state, function, small, large, model, getattr(target, models.LAYER_TYPES_STATED, None))


def plan_expansion(
    source: Path,
    target: PretrainedConfig,
    options: ExpansionOptions,
    layout: CheckpointLayout,
    source_config: Path | None = None,
    moments: OptimizerState = "reset",
    continued_by: OptimizerSpec | None = None,
    fitted: Fitted | None = None,
) -> ExpansionPlan:
    """Decide everything; no tensor is read, unless the method needs the source to decide. Raises UserError when the
    growth cannot be done as the method promises, or anything is missing.

    moments: what becomes of the optimizer state. continued_by: the optimizer of the training that goes on from the
    result, where that is known. fitted: of a learned method."""
    ends = both_ends(source, target, options.seed, source_config)
    if fitted:
        fitted.require(ends.folder)
    growth = ends.plan(options, fitted.module(ends.begun_module(options)) if fitted else None)
    return _planned(ends, growth, layout, moments, continued_by, fitted=fitted)


def plan_again(
    source: Path,
    operator: Path,
    layout: CheckpointLayout,
    source_config: Path | None = None,
    moments: OptimizerState = "reset",
) -> ExpansionPlan:
    """Decide to grow a source as an earlier expansion, the folder `operator`, has grown another of its shape. No tensor
    is read. Raises UserError as `plan_expansion` does."""
    earlier = Operator.read(operator)
    config = checkpoints.config_file(checkpoints.locate(source), source_config)
    ends = both_ends(source, earlier.target(models.read_config(config)[1]), earlier.options.seed, source_config)
    growth = earlier.plan(*ends.architectures, ends.init_std)
    return _planned(ends, growth, layout, moments, operator=earlier)


def _planned(
    ends: Ends,
    growth: GrowthPlan,
    layout: CheckpointLayout,
    moments: OptimizerState,
    continued_by: OptimizerSpec | None = None,
    **how: Any,
) -> ExpansionPlan:
    """how: `fitted` or `operator`."""
    folder, state, small = ends.folder, ends.state, ends.small
    large = ends.settled(growth)
    if layout.kind.published_names:
        state = tying.agreeing(state, ends.architectures[0], models.misread(large))
    dtypes = {tensor.dtype for tensor in state.tensors.values()}
    state = replace(state, misread=(*state.misread, *embedding_scales.remarks(growth, dtypes)))
    if moments != "reset":
        new = bool(state.engine.get(NEW_ENTRIES))
        kept = [slot for slot in state.optimizer().slots if slot in _held(small, state.optimizer())]
        optimizer_state.require(growth, moments, kept, state.slots, new)
        optimizer_state.require_continued(str(folder), state.optimizer(), continued_by or state.optimizer())
        _require_room(layout)
    grouping = NO_GROUPS
    if layout.kind.holds_optimizer and continued_by:
        grouping = groups.of_the_stage(large, continued_by)
    elif layout.kind.holds_optimizer:
        grouping = groups.of_the_source(folder, state, small, large, growth)
    if moments != "reset":
        optimizer = state.optimizer()
        wanted = {slot.name: grouping.holders(optimizer, slot) for slot in optimizer.slots}
        optimizer_state.require_sources(str(folder), growth, wanted, state.slots)
    if moments == "asymmetric":
        _require_one_count(folder, state)
    sides = folder, state, ends.function, small, large
    return ExpansionPlan(*sides, growth, layout, moments, continued_by, grouping, **how)


def _held(config: PretrainedConfig, optimizer: OptimizerSpec) -> set[Slot]:
    """The slots that an optimizer keeps for any parameter of a model: Muon's momentum for none without layers."""
    groups = checkpoints.fresh_groups(config, optimizer)
    return {slot for group in groups for slot in optimizer.slots_in(group.hyper)}


def _require_one_count(folder: Path, state: State) -> None:
    """Raises UserError where the optimizer has counted other steps for some parameters than for others: new entries
    count theirs from one."""
    if len(counts := sorted(set(state.steps.values()))) > 1:
        raise UserError(
            f"{folder}: its optimizer counts {counts[0]:g} steps for some parameters and {counts[-1]:g} for others; "
            "new entries could count from one alone: use --optimizer-state reset"
        )


def _require_room(layout: CheckpointLayout) -> None:
    """Raises UserError for a layout without a place for optimizer state."""
    if not layout.kind.holds_optimizer:
        able = " or ".join(each.name for each in LAYOUTS.values() if each.holds_optimizer)
        raise UserError(
            f"{layout.kind.title} files hold no optimizer state; use --format {able}, or --optimizer-state reset"
        )


def weight(state: State, name: str) -> Tensor:
    """One tensor of a state, in float32."""
    return state.tensors[name].tensor().float()

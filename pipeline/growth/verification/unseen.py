"""What a probe of a few tokens does not show, and is compared itself: windows of attention, rotary positions, what else
the configs say of the function, and the rows of tables that the probe does not look up."""

import math
from collections.abc import Iterator

from torch import Tensor
from transformers import PretrainedConfig

from pipeline import models
from pipeline.errors import UserError
from pipeline.growth.maps import IndexMap, Map, Run
from pipeline.growth.plan import GrowthPlan
from pipeline.models.agreement import contradictions
from pipeline.models.architecture import ParamSpec
from pipeline.models.config_keys import COMPARED_APART
from pipeline.models.streaming import RunnableModel

WINDOW = 2**22
"""Numbers of a table that are compared at a time."""


def require_equal_function(source: PretrainedConfig, target: PretrainedConfig, plan: GrowthPlan) -> None:
    """Raises UserError where the two configs say different things of the function: what a key changes may lie behind
    the last token of a probe, or in a part of the model that gives nothing out."""
    require_equal_windows(source, target, plan)
    require_equal_rotation(source, target)
    function = set(models.of_config(source).keys.function).difference(COMPARED_APART)
    for key, said in contradictions(source, target).items():
        if key in function:
            raise UserError(f"{said}: that is another function; give the target the source's value")


def require_equal_windows(source: PretrainedConfig, target: PretrainedConfig, plan: GrowthPlan) -> None:
    """Raises UserError for a layer whose attention sees another number of tokens than that of the layer it comes from:
    windows may be longer than a probe, which then would not show it."""
    before, after = (models.of_config(config).windows(config) for config in (source, target))
    if not before and not after:
        return
    (stack,) = plan.layers
    for layer, (continued, window) in enumerate(zip(plan.continued(stack), after, strict=True)):
        if continued is not None and before[continued] != window:
            raise UserError(
                f"layer {layer} of the target attends to {_seen(window)}, and layer {continued} of the source, "
                f"from which it comes, to {_seen(before[continued])}: long texts have other outputs"
            )


def _seen(window: int | None) -> str:
    return "all tokens" if window is None else f"those in a window of {window}"


def require_equal_rotation(source: PretrainedConfig, target: PretrainedConfig) -> None:
    """Raises UserError for other rotary positions: what scales them may begin behind the last token of a probe."""
    before, after = (models.rotation(config) for config in (source, target))
    if before != after:
        raise UserError(
            f"the rotary positions of the target are {after}, those of the source {before}: long texts have other "
            "outputs; give the target the source's"
        )


def table_difference(small: RunnableModel, large: RunnableModel, plan: GrowthPlan) -> tuple[float, str | None]:
    """The largest relative difference of any table whose rows enter the residual stream (tokens, positions, types,
    single rows) from what the plan's E makes of the source's: of every row, be it in the probe or not, and of every
    entry, for what no reader looks at a norm still sees. And the table's name; None where all are equal. Raises
    UserError that names one that cannot be compared."""
    worst, name = 0.0, None
    scales = {param.name: param.scale for param in plan.source.params}
    for row in _tables(plan):
        before, after = (model.parameter(row.module_name) for model in (small, large))
        written = plan.maps[plan.target.residual.name].writes.scaled(scales[row.template or row.name] / row.scale)
        gap, peak = _gap(before, after, written)
        if not math.isfinite(gap) or (gap and not peak):
            what = "is 0 everywhere in the source alone" if math.isfinite(gap) else "holds NaN or infinite values"
            raise UserError(f"'{row.name}' {what}, which no relative difference can measure; use an older checkpoint")
        if gap and gap / peak > worst:
            worst, name = gap / peak, row.name
    return worst, name


def _tables(plan: GrowthPlan) -> Iterator[ParamSpec]:
    """Parameters of several axes that are added to the residual stream, whose old rows stay where they are."""
    residual = plan.target.residual.name
    for row in plan.target.rows():
        *leading, last = row.axes
        added = row.use != "matmul" and last.role == "writes" and last.spaces == (residual,)
        if leading and added and all(_stay(plan.maps[name].reads) for axis in leading for name in axis.spaces):
            yield row


def _stay(rows: Map) -> bool:
    """Whether the source's rows are the first of the target's."""
    return isinstance(rows, IndexMap) and rows.runs[0] == Run(0, 0, rows.source, 1.0)


def _gap(small: Tensor, large: Tensor, written: Map) -> tuple[float, float]:
    """Of tables (…, D): max|E small - large| and max|E small| over the small one's rows, in float64; the large one may
    have more. Infinite where a number is not finite."""
    before = small.flatten(0, -2)
    after, step = large.flatten(0, -2)[: len(before)], max(1, WINDOW // large.shape[-1])
    gap, peak = 0.0, 0.0
    for some, others in zip(before.split(step), after.split(step), strict=True):
        expected = written.apply(some.double(), 1)
        apart = (expected - others.double()).abs()
        gap = max(gap, apart.nan_to_num(nan=math.inf, posinf=math.inf).max().item())
        peak = max(peak, expected.abs().max().item())
    return gap, peak

"""The optimizer groups in which a model is trained."""

from collections.abc import Iterable

from pipeline.models.architecture import Architecture
from pipeline.optim.optimizers import OptimizerSpec
from pipeline.optim.parameter_groups import GroupRule, grouped


def optimizer_groups(
    architecture: Architecture, names: Iterable[str], optimizer: OptimizerSpec
) -> dict[GroupRule, list[str]]:
    """The names of every group's parameters inside the model, in the optimizer's order: DeepSpeed's flat files name
    nothing, so the order is the layout. names: all of them in the order of the module's `named_parameters()`."""
    rows = {row.module_name: row for row in architecture.rows()}
    groups = grouped((name, optimizer.rule(rows[name].kind, rows[name].decay)) for name in names)
    return {
        rule: optimizer.order_in(optimizer.hyper(rule), members, lambda name: architecture.shape(rows[name]))
        for rule, members in groups.items()
    }


def state_numbers(architecture: Architecture, optimizer: OptimizerSpec) -> int:
    """How many numbers the optimizer keeps besides the weights, step counts aside."""
    rules = ((architecture.numel(row), optimizer.rule(row.kind, row.decay)) for row in architecture.rows())
    return sum(numel * len(optimizer.slots_in(optimizer.hyper(rule))) for numel, rule in rules)

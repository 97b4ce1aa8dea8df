"""The optimizer groups in which a model is trained."""

from collections.abc import Iterable

from pipeline.models.architecture import Architecture
from pipeline.optim.optimizers import OptimizerSpec
from pipeline.optim.parameter_groups import GroupRule, grouped


def optimizer_groups(
    architecture: Architecture, names: Iterable[str], optimizer: OptimizerSpec
) -> dict[GroupRule, list[str]]:
    """The names of every group's parameters inside the model. names: all of them in the order of the module's
    `named_parameters()`, which is theirs in a group too: DeepSpeed's flat files name nothing, so the order is the
    layout."""
    rows = {row.module_name: row for row in architecture.rows()}
    return grouped((name, optimizer.rule(rows[name].kind, rows[name].decay)) for name in names)

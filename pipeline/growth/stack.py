"""StackBERT (Gong et al., ICML 2019): the layers stand on one another again, layer i from layer i mod L_S."""

from pipeline.axes import Table
from pipeline.growth import conditions, fpi
from pipeline.growth.method import Method


def refusals(source: Table, target: Table) -> list[str]:
    return conditions.impossible(source, target) or conditions.width_changes(source, target, "stack")


METHOD = Method("stack", fpi.choose, fpi.stacked, refusals, conditions.deeper)

"""StackBERT (Gong et al., ICML 2019): the layers stand on one another again, layer i from layer i mod L_S."""

from pipeline.growth import conditions
from pipeline.growth.method import Method
from pipeline.growth.methods import fpi
from pipeline.models.architecture import Architecture


def refusals(source: Architecture, target: Architecture) -> list[str]:
    return conditions.impossible(source, target) or conditions.width_changes(source, target, "stack")


METHOD = Method("stack", fpi.choose, fpi.stacked, refusals, conditions.deeper)

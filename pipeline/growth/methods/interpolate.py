"""Interpolation, or depth up-scaling: each layer repeated in its place, layer i from layer floor(i L_S / L_T)."""

from pipeline.growth import conditions
from pipeline.growth.method import ExpansionOptions, LayerOrigin, Method, Term
from pipeline.growth.methods import fpi
from pipeline.models.architecture import Architecture


def layers(source: int, target: int, options: ExpansionOptions) -> tuple[LayerOrigin, ...]:
    return tuple(LayerOrigin((Term(index * source // target),)) for index in range(target))


def refusals(source: Architecture, target: Architecture) -> list[str]:
    return conditions.impossible(source, target) or conditions.width_changes(source, target, "interpolate")


METHOD = Method("interpolate", fpi.choose, layers, refusals, conditions.deeper)

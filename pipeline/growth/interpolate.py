"""Interpolation, or depth up-scaling: each layer repeated in its place, layer i from layer floor(i L_S / L_T)."""

from pipeline.axes import Table
from pipeline.growth import conditions, fpi
from pipeline.growth.method import Layer, Method, Options, Term


def layers(source: int, target: int, options: Options) -> tuple[Layer, ...]:
    return tuple(Layer((Term(index * source // target),)) for index in range(target))


def refusals(source: Table, target: Table) -> list[str]:
    return conditions.impossible(source, target) or conditions.width_changes(source, target, "interpolate")


METHOD = Method("interpolate", fpi.choose, layers, refusals, conditions.deeper)

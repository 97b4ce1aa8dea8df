"""From scratch under the same command: nothing of the source is taken but its family."""

from pipeline.growth import conditions
from pipeline.growth.maps import Maps
from pipeline.growth.method import GrowthContext, LayerOrigin, Method, MethodOptions
from pipeline.growth.methods import fpi
from pipeline.models.architecture import Architecture


class FromScratch(Method):
    name = "random"
    summary = "a fresh model of the target's size, for comparison"
    fresh = True

    def refusals(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        return conditions.impossible(source, target, fresh_layers=True)

    def lossy(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        return ["every tensor starts fresh"]

    def maps(self, source: Architecture, target: Architecture, context: GrowthContext) -> Maps:
        return fpi.copied(source, target, fpi.circular)

    def stack_layers(self, source: int, target: int, options: MethodOptions) -> tuple[LayerOrigin, ...]:
        return super().stack_layers(source, target, options) if source else (LayerOrigin((), fresh=True),) * target

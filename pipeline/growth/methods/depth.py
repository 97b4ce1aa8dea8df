"""Methods that grow in depth alone: every layer is a copy, at the place of another."""

from pipeline.growth import conditions
from pipeline.growth.maps import Maps
from pipeline.growth.method import GrowthContext, LayerOrigin, Method, MethodOptions, copies_of, repeated
from pipeline.growth.methods import fpi
from pipeline.models.architecture import Architecture


class _DepthOnly(Method):
    """Widths stay; repeated layers compute something else."""

    def refusals(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        return conditions.impossible(source, target) or conditions.width_changes(source, target, self.name)

    def lossy(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        return conditions.deeper(source, target)

    def maps(self, source: Architecture, target: Architecture, context: GrowthContext) -> Maps:
        return fpi.copied(source, target, fpi.circular)


class Stack(_DepthOnly):
    """StackBERT (Gong et al., ICML 2019): layer i from layer i mod L_S."""

    name = "stack"
    summary = "depth only: the layers stand on one another again (StackBERT)"


class Interpolate(_DepthOnly):
    """Interpolation, or depth up-scaling: layer i from layer floor(i L_S / L_T)."""

    name = "interpolate"
    summary = "depth only: each layer is repeated in its place"

    def stack_layers(self, source: int, target: int, options: MethodOptions) -> tuple[LayerOrigin, ...]:
        return copies_of(repeated(source, target))

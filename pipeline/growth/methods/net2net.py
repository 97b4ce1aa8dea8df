"""Net2Net (Chen et al., arXiv:1511.05641): like FPI, but which units are copied is drawn at random; layers stacked."""

import torch
from torch import Tensor

from pipeline.growth import conditions
from pipeline.growth.maps import Maps
from pipeline.growth.method import GrowthContext, Method, MethodOptions
from pipeline.growth.methods import fpi
from pipeline.models.architecture import Architecture
from pipeline.rng import derive


class Net2Net(Method):
    name = "net2net"
    summary = "copies drawn at random, layers stacked, no noise"

    def refusals(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        return conditions.impossible(source, target)

    def lossy(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        """A random choice of stream entries changes the mean and the variance that the norms see, whatever the
        width."""
        before, after = source.residual.size, target.residual.size
        drawn = (
            f"{target.residual.name} grows from {before} to {after} by entries drawn at random: "
            "the norms see another variance"
        )
        grown = [drawn] if after > before else []
        return conditions.interpolated(source, target) + grown + conditions.deeper(source, target)

    def maps(self, source: Architecture, target: Architecture, context: GrowthContext) -> Maps:
        """The draw depends on the seed and on the sizes alone."""

        def pick(before: int, after: int) -> Tensor:
            generator = torch.Generator().manual_seed(derive(context.seed, self.name, before, after))
            return torch.cat([torch.arange(before), torch.randint(before, (after - before,), generator=generator)])

        return fpi.copied(source, target, pick)

"""From scratch under the same command: nothing of the source is taken but its family."""

from pipeline.growth import conditions
from pipeline.growth.method import Method
from pipeline.growth.methods import fpi
from pipeline.models.architecture import Architecture


def lossy(source: Architecture, target: Architecture) -> list[str]:
    return ["every tensor starts fresh"]


METHOD = Method("random", fpi.choose, fpi.stacked, conditions.impossible, lossy, fresh=True)

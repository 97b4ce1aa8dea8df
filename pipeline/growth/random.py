"""From scratch under the same command: nothing of the source is taken but its family."""

from pipeline.axes import Table
from pipeline.growth import conditions, fpi
from pipeline.growth.method import Method


def lossy(source: Table, target: Table) -> list[str]:
    return ["every tensor starts fresh"]


METHOD = Method("random", fpi.choose, fpi.stacked, conditions.impossible, lossy, fresh=True)

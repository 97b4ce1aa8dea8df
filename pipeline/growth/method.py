"""What a growth method is: four choices (E, R, c, N), and its word on whether they are lossless."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pipeline.growth.maps import Maps
from pipeline.models.architecture import Architecture


@dataclass(frozen=True)
class ExpansionOptions:
    """What a user chooses. noise: the scale s of N = s * (projected fresh initialisation)."""

    method: str = "lemon"
    depth: Literal["zero", "cancel"] = "zero"
    placement: Literal["top", "even"] = "even"
    noise: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Term:
    """c_j W_j: a source layer, its coefficient, and by which of the method's maps it goes."""

    layer: int
    weight: float | Tensor = 1.0
    maps: str = ""


@dataclass(frozen=True)
class LayerOrigin:
    """Where a target layer comes from. A `new` one adds nothing to the residual stream at step 0."""

    terms: tuple[Term, ...]
    new: bool = False

    @property
    def origin(self) -> int:
        return self.terms[0].layer


@dataclass(frozen=True)
class Method:
    """One growth method.

    maps: E and R of every space, by the name that terms use (most have one set, ""). layers: c. noise: whether N is on.
    refusals: why it cannot be done at all, or not without loss when the method promises that. lossy: why its result
    computes another function; a result without a reason is held to the gates.
    """

    name: str
    maps: Callable[[Architecture, Architecture, int], dict[str, Maps]]
    layers: Callable[[int, int, ExpansionOptions], tuple[LayerOrigin, ...]]
    refusals: Callable[[Architecture, Architecture], list[str]]
    lossy: Callable[[Architecture, Architecture], list[str]]
    noise: bool = False
    fresh: bool = False

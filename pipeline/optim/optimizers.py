"""What an optimizer keeps for every parameter."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """One tensor of an optimizer's state beside each parameter. power: 1 where it adds up gradients, 2 where it adds up
    their squares: by this it grows."""

    name: str
    power: int

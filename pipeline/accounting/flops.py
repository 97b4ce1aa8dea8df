"""FLOPs from an architecture: one multiply-add is 2 FLOPs, every number an exact integer.

A weight of shape (out, in) costs 2 * out * in per use; attention 4 * s * d per token of a sequence of s tokens
(QK^T and AV), all pairs of tokens counted, those that a causal mask or a window hides too; the head at every position
that it runs on; the backward pass twice the forward, less the input gradient where there is none.
Checked against `torch.utils.flop_counter` in tests/parity.
"""

from dataclasses import dataclass

from pipeline.models.architecture import Architecture, Attention, ParamSpec

CONVENTION = (
    "matrix products only, 2 FLOPs per multiply-add, backward twice forward, no input gradient for the first layer"
)
"""How all FLOPs are counted, in words."""


@dataclass(frozen=True)
class Cost:
    """FLOPs of one sample (a sequence or an image)."""

    forward: int
    backward: int
    recompute: int
    """What activation checkpointing adds: each layer that is checkpointed forward once more, less the matrix product
    that ends it where nothing is dropped behind it (then nothing is saved there, and torch stops in front of it)."""

    @property
    def train(self) -> int:
        return self.forward + self.backward


def cost(architecture: Architecture, positions: dict[str, int], every: int = 1, *, drops: bool = False) -> Cost:
    """FLOPs of one sample. `positions` says how many tokens, patches, … a sample has; every: of so many layers the
    first is checkpointed, where any are; drops: whether something is dropped behind the product that ends a layer, for
    which that has to be computed again too."""
    forward = backward = recompute = 0
    for row in architecture.rows():
        once = _forward(architecture, row, positions)
        forward += once
        backward += once * (2 if row.input_grad else 1)
        again = row.layer is not None and row.layer % every == 0 and (drops or not _closes(architecture, row))
        recompute += once if again else 0
    attention = again_attention = 0
    for stack in architecture.stacks:
        layer = sum(_attention(architecture, each, positions) for each in stack.attentions)
        attention += stack.layers * layer
        again_attention += checkpointed(stack.layers, every) * layer
    return Cost(forward + attention, backward + 2 * attention, recompute + again_attention)


def checkpointed(layers: int, every: int) -> int:
    """How many of the layers are the first of `every`."""
    return -(-layers // every)


def _attention(architecture: Architecture, each: Attention, positions: dict[str, int]) -> int:
    """FLOPs of an attention's two products in one layer."""
    width = architecture.spaces[each.query].size
    return 4 * positions[each.query_positions] * positions[each.key_positions] * width


def _forward(architecture: Architecture, row: ParamSpec, positions: dict[str, int]) -> int:
    multiplies = row.use in ("matmul", "both")
    return 2 * architecture.numel(row) * positions[row.counted_per] if multiplies else 0


def _closes(architecture: Architecture, row: ParamSpec) -> bool:
    """Whether `row` is the matrix product that ends its layer: no norm or layer scale (which save their input) comes
    behind it."""
    weights = [
        spec
        for spec in architecture.params
        if spec.layered
        and spec.stack == row.stack
        and (spec.use == "matmul" or spec.axes[0].role in ("gain", "scales"))
    ]
    return row.template == weights[-1].name

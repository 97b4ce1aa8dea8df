"""What Mango takes for one layer's weights: square slots, as wide as the residual stream.

Every matrix of a layer is cut into slots along the one side that is longer than the width: the fused projections of
GPT-2 into three, an MLP of k times the width into k on its way in and k on its way out. So B = 2k + 4 slots make up a
layer, in the order of its parameters.
"""

from dataclasses import dataclass

from pipeline.growth.method import Block
from pipeline.models.architecture import Architecture, ParamSpec


@dataclass(frozen=True)
class Slot:
    """The piece `number` along `axis` of a matrix of every layer."""

    template: str
    axis: int
    number: int

    def block(self, width: int) -> Block:
        """Where it lies in a model of this width."""
        return Block(self.axis, self.number * width, width)


def slots(architecture: Architecture) -> tuple[Slot, ...]:
    """The slots of a layer, for an architecture that has no `refusals`."""
    width = architecture.residual.size
    return tuple(
        Slot(param.name, axis, number)
        for param in _matrices(architecture)
        for axis in [_longer(architecture, param)]
        for number in range(architecture.shape(param)[axis] // width)
    )


def refusals(source: Architecture, target: Architecture) -> list[str]:
    """Why the layers of these two models do not fall into the same slots; empty when they do."""
    if not any(stack.layers for stack in target.stacks):
        return ["mango grows the matrices of layers, and there are none; use lemon"]
    return _foreign_attention(source, target) + (_foreign_mlp(source, target) or _foreign_storage(target))


def _matrices(architecture: Architecture) -> list[ParamSpec]:
    return [param for param in architecture.params if param.layered and param.use == "matmul"]


def _longer(architecture: Architecture, param: ParamSpec) -> int:
    """The axis along which a matrix is cut."""
    rows, columns = architecture.shape(param)
    return int(columns > rows)


def _foreign_attention(source: Architecture, target: Architecture) -> list[str]:
    attentions = target.attentions
    if len(target.stacks) > 1 or len(attentions) > 1:
        return [f"mango grows one stack of layers with one attention, and '{target.family}' has more"]
    attention, reasons = attentions[0], []
    if attention.rope:
        reasons.append("rotary positions turn pairs of entries of a head, and mango mixes all entries of all heads")
    if source.grouped or target.grouped:
        reasons.append("groups of heads share keys and values, and mango needs projections as wide as the model")
        return reasons
    before, after = source.spaces[attention.query], target.spaces[attention.query]
    if before.unit != after.unit:
        reasons.append(
            f"head_dim changes from {before.unit} to {after.unit}, and mango starts with whole heads; give the target "
            f"heads of {before.unit}"
        )
    for name, model, space in (("source", source, before), ("target", target, after)):
        if space.size != model.residual.size:
            reasons.append(
                f"the heads of the {name} are {space.size} wide in all, and mango needs the width of the model, "
                f"{model.residual.size}"
            )
    return reasons


def _foreign_mlp(source: Architecture, target: Architecture) -> list[str]:
    mlps = [name for name, space in target.spaces.items() if space.kind == "mlp"]
    if any(sum(param.times(name, "writes") for param in _matrices(target)) > 1 for name in mlps):
        return ["the MLP has a gate, which the operator of mango has no slots for"]
    sizes = [(name, model.spaces[name].size, model.residual.size) for name in mlps for model in (source, target)]
    if uneven := [
        f"{name} {size} is no whole multiple of the width {width}, and mango cuts it into pieces of that width"
        for name, size, width in sizes
        if size % width
    ]:
        return uneven
    pieces = [size // width for _, size, width in sizes]
    if len(set(pieces)) > 1:
        return [f"the MLP's size goes from {pieces[0]} to {pieces[1]} times the width, and mango keeps that number"]
    return []


def _foreign_storage(target: Architecture) -> list[str]:
    leading = {param.axes[0].role for param in _matrices(target)}
    if len(leading) == 1:
        return []
    return ["some matrices of a layer are stored as (out, in) and some as (in, out), and mango adds them up"]

"""FLOPs of making a target's weights from a source's: the products with dense matrices, each of which is 2 FLOPs for
every multiply-add. Sums, copies and mixtures of layers are not counted, as torch's counter does not.

Where the matrices are learned, a product W M^T costs as much again for each of its factors that gets a gradient: the
matrix, and W where it is a mixture of layers, or came out of another product. What is made inside of a layer's
activation checkpoint is made twice.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from pipeline.growth.execute import PlanExecutor, on_weight
from pipeline.growth.maps import DenseMap, Maps
from pipeline.growth.method import ExpansionOptions
from pipeline.growth.plan import GrowthPlan, TensorPlan, begun_module, plan_growth
from pipeline.models.architecture import Architecture, ParamSpec


@dataclass(frozen=True)
class MakingCost:
    """FLOPs of one pass of a micro-batch, whatever it holds. recompute: what the layers' checkpoints add."""

    forward: int
    backward: int
    recompute: int


NO_MAKING = MakingCost(0, 0, 0)


@dataclass(frozen=True)
class FitNeeds:
    """What fitting a growth takes besides activations. coefficients: how many are learned, by parameter. fixed: numbers
    of the source and of N. made: numbers of the weights that are there at one time, about: those outside of layers and
    those of the largest layer, each once more for its gradient."""

    making: MakingCost
    coefficients: tuple[int, ...]
    fixed: int
    made: int

    @classmethod
    def of(cls, source: Architecture, target: Architecture, options: ExpansionOptions, init_std: float) -> "FitNeeds":
        """Of a learned method, as its fit begins. Raises UserError."""
        module = begun_module(source, target, options)
        assert isinstance(module, nn.Module), "a learned method supplies an nn.Module"
        plan = plan_growth(source, target, options, init_std, module=module)
        noise = sum(prod(each.shape) for each in plan.tensors if each.noise)
        layers, outside = Counter[tuple[str, int]](), 0
        for row in plan.target.rows():
            if row.layer is None:
                outside += plan.target.numel(row)
            else:
                layers[row.stack, row.layer] += plan.target.numel(row)
        made = 2 * (outside + max(layers.values(), default=0))
        learned = tuple(parameter.numel() for parameter in module.parameters())
        return cls(making_cost(plan), learned, plan.source.parameters + noise, made)


def making_cost(plan: GrowthPlan) -> MakingCost:
    """Of a plan whose matrices are learned, as `GrownModel` carries it out."""
    forward = backward = recompute = 0
    executor = PlanExecutor(plan)
    for each in plan.tensors:
        made = list(products(executor, each))
        once = sum(flops for flops, _ in made)
        forward += once
        backward += sum(flops * gradients for flops, gradients in made)
        recompute += once if executor.params[each.target].layer is not None else 0
    return MakingCost(forward, backward, recompute)


def products(executor: PlanExecutor, tensor_plan: TensorPlan) -> Iterator[tuple[int, int]]:
    """(FLOPs, factors that get a gradient) of every product that makes a tensor."""
    param = executor.params[tensor_plan.target]
    sums = [(param, tensor_plan.terms), *((block.alone(param), block.terms) for block in tensor_plan.blocks)]
    for each, terms in sums:
        for maps in dict.fromkeys(term.maps for term in terms):
            mixed = any(_moves(term.coefficient) for term in terms if term.maps == maps)
            yield from _transformed(executor, each, executor.plan.maps_named(maps), mixed)


def _transformed(executor: PlanExecutor, param: ParamSpec, maps: Maps, learned: bool) -> Iterator[tuple[int, int]]:
    """The products of E W R^T, axis by axis as it is carried out. learned: whether W gets a gradient."""
    plan, rows = executor.plan, range(executor.plan.target.shape(param)[0])
    sizes = [[plan.source.spaces[name].size for name in axis.spaces] for axis in param.axes]
    for axis, label in enumerate(param.axes):
        others = prod(sum(size) for number, size in enumerate(sizes) if number != axis)
        matrices = executor.axis_maps(param, axis, maps, on_weight, rows)
        dense = [(number, each.matrix) for number, each in matrices if isinstance(each, DenseMap)]
        for number, matrix in dense:
            yield 2 * others * sizes[axis][number] * len(matrix), _moves(matrix) + learned
        learned = learned or any(_moves(matrix) for _, matrix in dense)
        sizes[axis] = [plan.target.spaces[name].size for name in label.spaces]


def _moves(factor: float | Tensor) -> bool:
    """Whether it is learned."""
    return isinstance(factor, Tensor) and factor.requires_grad

"""Memory of one rank in training, in bytes, before anything is built.

Model states (weights, gradients, optimizer) as DeepSpeed 0.19.8 keeps them in each ZeRO stage, padding included; held
against the tensors of real engines in tests/distributed/test_memory_of_engines.py. Activations are an estimate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.accounting.flops import checkpointed
from pipeline.config.deepspeed_keys import ZeroOptimization
from pipeline.config.schema import TrainStage
from pipeline.models.architecture import Architecture, ParamSpec
from pipeline.optim.optimizers import OptimizerSpec
from pipeline.optim.parameter_groups import grouped

FP32, BF16 = 4, 2
"""Bytes of a number."""
BUCKET = 500_000_000
"""DeepSpeed's reduce_bucket_size: numbers of the buffer through which gradients are reduced, whatever the model's
size."""
MOST_GATHERED = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters: weights that stage 3 keeps gathered at one time."""


@dataclass(frozen=True)
class Buffers:
    """What DeepSpeed's config says of them. bucket: numbers of one; paired: one is filled while another is reduced, of
    which stages 1 and 2 allocate both; gathered: the most weights that stage 3 keeps gathered; at_once: where stage 1
    sums gradients of bf16 in float32, BF16_Optimizer reduces them without any."""

    bucket: int = BUCKET
    gathered: int = MOST_GATHERED
    paired: bool = False
    at_once: bool = True

    @classmethod
    def of(cls, stage: TrainStage, on_gpu: bool = False) -> "Buffers":
        """By the keys of a stage; a pair is what this pipeline takes on GPUs where they say nothing."""
        zero = stage.deepspeed.zero_optimization or ZeroOptimization()
        gathered = MOST_GATHERED if zero.stage3_max_live_parameters is None else zero.stage3_max_live_parameters
        paired = on_gpu if zero.overlap_comm is None else zero.overlap_comm
        at_once = stage.sums == "fp32" and not stage.deepspeed.offloads
        return cls(zero.reduce_bucket_size or BUCKET, gathered, paired, at_once)


@dataclass(frozen=True)
class TrainedGroup:
    """An optimizer group. sizes: elements of each parameter. slots: tensors that the optimizer keeps for each. muon:
    these are matrices trained by Muon. Stages 1 and 2 keep the momentum of whole matrices; what that adds to a rank's
    share, parts of two matrices at most, does not count."""

    sizes: tuple[int, ...]
    slots: int
    muon: bool = False


@dataclass(frozen=True)
class ModelStates:
    """Of one rank. gathered: whole weights that stage 3 has at work. bucket: what a GPU holds besides while gradients
    are reduced; a CPU takes up only the part that is used."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    bucket: int

    @property
    def held(self) -> int:
        """All but the bucket, at its most: where gradients are complete, or the optimizer steps."""
        return self.weights + self.gradients + self.optimizer + self.gathered


def model_states(
    groups: Sequence[TrainedGroup],
    *,
    zero_stage: int,
    ranks: int,
    bf16: bool,
    accumulates: bool,
    fp32_sums: bool = False,
    buffers: Buffers = Buffers(),
) -> ModelStates:
    """What a rank holds. accumulates: several micro-batches make a step. fp32_sums: gradients of bf16 are summed in
    float32."""
    width = BF16 if bf16 else FP32
    whole = sum(sum(group.sizes) for group in groups)
    if zero_stage == 0:
        kept = sum(group.slots * sum(group.sizes) for group in groups)
        return _replicated(whole, kept, width, width + FP32 if fp32_sums else width)
    shares = [_share(group.sizes, zero_stage, ranks) for group in groups]
    share, staged = sum(shares), zero_stage == 2 or (zero_stage == 1 and not fp32_sums)
    kept = sum(
        group.slots * each + (group.muon and _orthogonalised(group, each, zero_stage, staged, buffers))
        for group, each in zip(groups, shares, strict=True)
    )
    optimizer = FP32 * (share + kept)  # a copy of the weights in float32, whatever the training's precision
    if fp32_sums:
        return _summed_in_fp32(zero_stage, share, share * ranks, optimizer, whole, buffers)
    if zero_stage == 3:
        gathered = width * min(whole, buffers.gathered)
        return ModelStates(width * share, width * share, optimizer, gathered, width * buffers.bucket)
    # Both cast their share for the step. Stage 1 keeps the sums of several micro-batches whole until then.
    gradients = max((width + FP32) * share, width * whole if zero_stage == 1 and accumulates else 0)
    return ModelStates(width * share * ranks, gradients, optimizer, 0, width * _buckets(buffers))


def _buckets(buffers: Buffers) -> int:
    """Numbers that stages 1 and 2 allocate for reducing."""
    return buffers.bucket * (2 if buffers.paired else 1)


def _orthogonalised(group: TrainedGroup, share: int, zero_stage: int, staged: bool, buffers: Buffers) -> int:
    """Numbers besides weights and momentum. staged: the momentum is kept as a step will leave it, too. Stage 3 gathers
    the gradients of whole matrices, as many as a bucket takes."""
    if zero_stage == 3:
        return min(sum(group.sizes), buffers.bucket) + share
    return share if staged else 0


def parameter_groups(architecture: Architecture, optimizer: OptimizerSpec) -> list[TrainedGroup]:
    """The optimizer's groups."""
    rules = ((architecture.numel(row), optimizer.rule(row.kind, row.decay)) for row in architecture.rows())
    return [
        TrainedGroup(tuple(sizes), len(optimizer.slots_in(optimizer.hyper(rule))), rule.muon)
        for rule, sizes in grouped(rules).items()
    ]


def _summed_in_fp32(
    zero_stage: int, share: int, padded: int, optimizer: int, whole: int, buffers: Buffers
) -> ModelStates:
    """Stages 1 to 3 in 16 bits whose gradients are summed in float32: whole in stage 1, from where the optimizer takes
    its share; else each rank's share. A bucket is reduced in a copy in float32. padded: numbers of all shares."""
    if zero_stage == 1:
        bucket = min(padded, BUCKET) if buffers.at_once else _buckets(buffers)
        return ModelStates(BF16 * padded, FP32 * padded, optimizer, 0, FP32 * bucket)
    weights, gathered = (share, min(whole, buffers.gathered)) if zero_stage == 3 else (padded, 0)
    staged = FP32 * buffers.bucket if zero_stage == 3 else BF16 * _buckets(buffers)
    bucket = staged + FP32 * min(whole, buffers.bucket)
    return ModelStates(BF16 * weights, FP32 * share, optimizer, BF16 * gathered, bucket)


def _replicated(whole: int, kept: int, width: int, reduced: int) -> ModelStates:
    """Stage 0: torch's own optimizer; in bf16 weights in float32 besides, and the gradients once more at the step.
    kept: numbers of the optimizer's state. reduced: bytes of a number that is being reduced."""
    half = width == BF16
    optimizer = FP32 * (kept + (whole if half else 0))
    gradients = (width + (FP32 if half else 0)) * whole
    return ModelStates(width * whole, gradients, optimizer, 0, reduced * min(whole, BUCKET))


def _share(group: Sequence[int], zero_stage: int, ranks: int) -> int:
    """Numbers of a rank's flat tensor: stage 3 pads every parameter, the others the whole group."""
    if zero_stage == 3:
        return sum(math.ceil(size / ranks) for size in group)
    return 2 * math.ceil(sum(group) / (2 * ranks))


def of_new_entries(numbers: int, partly: int, zero_stage: int, ranks: int) -> int:
    """Bytes at most of a rank for the updates of entries that a growth has added (training/entry_rates.py): at the step
    a copy in float32 of the tensors that hold any, and a mask of those that hold others too. numbers, partly: of these
    two kinds of tensors."""
    return math.ceil((FP32 * numbers + partly) / (ranks if zero_stage else 1))


ACTIVATIONS = (
    "estimate: micro-batch x (2 x inputs of norms, 3 x of RMSNorms, + queries, keys, values + contexts + MLP units "
    "before and after activation, of gated ones 4 x MLP units, + logits)"
)
"""The formula of `activations`, in words."""


def activations(
    architecture: Architecture, positions: dict[str, int], *, micro_batch: int, bf16: bool, every: int = 0
) -> int:
    """Bytes that a forward pass leaves for the backward pass, about: attention is taken to keep no scores, dropout's
    masks do not count. positions: tokens, patches, … of a sample. every: under activation checkpointing of the first of
    so many layers, of which the input is kept, and all of one; 0: without."""
    numbers = _saved(architecture, positions, [spec for spec in architecture.params if not spec.layered])
    for stack in architecture.stacks:
        layer = _saved(architecture, positions, architecture.templates(stack))
        kept = architecture.residual.size * positions["token"]
        inputs = checkpointed(stack.layers, every) if every else 0
        numbers += inputs * kept + kept_layers(stack.layers, every) * layer
    logits = architecture.spaces[architecture.outputs["logits"]].size if "logits" in architecture.outputs else 0
    numbers += logits * positions.get("scored", 1)
    return micro_batch * (BF16 if bf16 else FP32) * numbers


def kept_layers(layers: int, every: int) -> int:
    """How many layers keep all that they leave at the same time: those that are not checkpointed, and the one of the
    others that is computed again. every: as in `activations`."""
    return layers - checkpointed(layers, every) + 1 if every else layers


def _saved(architecture: Architecture, positions: dict[str, int], specs: list[ParamSpec]) -> int:
    """Numbers that one sample leaves where these parameters are used: in a layer, or outside of all. Where a gate
    multiplies MLP units, it is kept besides, activated."""
    gates = sum(spec.times("mlp", "writes") for spec in specs if spec.use == "matmul") - 1
    gated = max(0, gates) * positions["token"] * architecture.spaces["mlp"].size
    return gated + sum(
        _kept(axis.role, architecture.spaces[name].kind, spec.use, architecture.rms)
        * positions[spec.counted_per]
        * architecture.spaces[name].size
        for spec in specs
        for axis in spec.axes
        for name in axis.spaces
    )


def _kept(role: str, kind: str, use: str, rms: bool) -> int:
    """How often the backward pass needs an activation: a norm's input and output (an RMSNorm, which is several
    operations, keeps the normed input as well), what a product reads that no norm has given out, what an attention or
    an MLP's activation reads."""
    if role == "gain":
        return 3 if rms else 2
    products = {"reads": ("context", "mlp"), "writes": ("query", "key", "value", "mlp")}
    return 1 if use == "matmul" and kind in products.get(role, ()) else 0

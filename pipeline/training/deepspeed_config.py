"""DeepSpeed's config of a training stage. Everything that it decides by default and that matters here is written out,
since its defaults changed between versions (clipping and overflow checks in 0.19.3, time-outs in 0.19.6)."""

from typing import Any

from deepspeed.accelerator import get_accelerator

from pipeline.config.schema import TrainStage
from pipeline.optim.optimizers import Muon
from pipeline.training import micro_batches

LOSS_SCALE = {
    "loss_scale": 0,
    "initial_scale_power": 16,
    "loss_scale_window": 1000,
    "hysteresis": 2,
    "consecutive_hysteresis": False,
    "min_loss_scale": 1,
}
"""DeepSpeed's own: one that follows, begins with 65536, doubles after 1000 steps, and is halved at the second overflow
in that time."""
AUTOCAST: dict[str, Any] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
"""Of modules that are named there, DeepSpeed would sum gradients in bf16."""


def deepspeed_config(stage: TrainStage, world: int, universal: bool = False) -> dict[str, Any]:
    """DeepSpeed's config for a stage: what the stage's keys say, and the keys of its `deepspeed`, which are others.
    Raises UserError when the batch does not divide."""
    return merged(_by_the_stage(stage, world, universal), stage.deepspeed.given())


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The entries of both, those of mappings in turn; where both say something else, the other's."""
    both = {key: merged(one[key], other[key]) for key in one.keys() & other.keys() if isinstance(one[key], dict)}
    return {**one, **other, **both}


def _by_the_stage(stage: TrainStage, world: int, universal: bool) -> dict[str, Any]:
    micro = micro_batches.size_of(stage, world)
    return {
        "train_batch_size": stage.batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": stage.batch // (micro * world),
        "gradient_clipping": stage.optimizer.clip,
        "zero_optimization": {
            "stage": stage.zero_stage,
            "round_robin_gradients": False,
            "overlap_comm": _overlaps(stage.zero_stage),
            **_reduction(stage),
            **_products(stage),
        },
        "bf16": {"enabled": stage.precision == "bf16", "check_grad_overflow": False, "immediate_grad_update": True},
        **_gradient_sums(stage),
        "fp16": LOSS_SCALE | {"enabled": True} if stage.precision == "fp16" else {"enabled": False},
        "torch_autocast": AUTOCAST if stage.precision == "bf16-autocast" else {"enabled": False},
        "checkpoint": {"load_universal": universal},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }


def _overlaps(zero_stage: int) -> bool:
    """Whether gradients are reduced while the backward pass computes on: a CPU would do both in turn. DeepSpeed's own
    default is stage 3 alone."""
    return zero_stage == 3 or (zero_stage > 0 and get_accelerator().device_name() == "cuda")


def _reduction(stage: TrainStage) -> dict[str, Any]:
    """Under Muon stage 3 gives every rank the gradients of whole matrices; DeepSpeed refuses the other way."""
    return {"reduce_scatter": False} if stage.zero_stage == 3 and isinstance(stage.optimizer, Muon) else {}


def _products(stage: TrainStage) -> dict[str, Any]:
    """Stage 3 replaces torch's linear function of the whole process by one of its own, which lets go of weights that
    the backward pass gathers again. Compiled for a GPU it gave wrong gradients without a word (torch 2.11), and a
    compiled layer is gathered as a whole."""
    return {"memory_efficient_linear": False} if stage.zero_stage == 3 and stage.compile is True else {}


def _gradient_sums(stage: TrainStage) -> dict[str, Any]:
    """In 16 bits DeepSpeed sums micro-batches and ranks in them, where it is told nothing. Stage 0 refuses another
    format for the sum over micro-batches, of which `micro_batches` lets it have one alone; that over ranks is rounded
    to bf16 once."""
    if stage.sums != "fp32" and stage.precision != "fp16":
        return {}
    over_ranks = {"communication_data_type": "fp32"}
    return over_ranks if stage.zero_stage == 0 else {"data_types": {"grad_accum_dtype": "fp32"}, **over_ranks}

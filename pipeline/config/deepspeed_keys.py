"""Keys of DeepSpeed's own config that a training stage takes in `deepspeed:`, and what is said of all others.

DeepSpeed ignores most keys that it does not know, so all are asked for here: what the stage decides by keys of its own
is refused with their names, and so is what this pipeline's checkpoints and records would not hold.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.validation_errors import ConfigProblems
from pipeline.errors import nearest
from pipeline.records.strict import Strict

BY_THE_STAGE = {
    "train_batch_size": "batch",
    "train_micro_batch_size_per_gpu": "micro_batch",
    "gradient_accumulation_steps": "batch and micro_batch",
    "gradient_clipping": "optimizer.clip",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "zero_allow_untested_optimizer": "optimizer",
    "zero_force_ds_cpu_optimizer": "optimizer",
    "bf16": "precision and gradient_sums",
    "bfloat16": "precision and gradient_sums",
    "fp16.enabled": "precision",
    "torch_autocast": "precision",
    "data_types": "gradient_sums",
    "communication_data_type": "gradient_sums",
    "zero_optimization.stage": "zero_stage",
    "activation_checkpointing": "activation_checkpointing",
    "compile": "compile",
    "checkpoint": "save, save_every and keep",
    "steps_per_print": "log_every",
    "tensorboard": "trackers",
    "wandb": "trackers",
}
"""Keys of DeepSpeed's, nested ones behind a dot, by those of a training stage that decide them."""

_REFUSALS = {
    "checkpoints of it are not read here": """
        elasticity nebula datastates_ckpt aio tensor_parallel expert_parallel pipeline sequence_parallel_size
        use_data_before_expert_parallelism hybrid_engine weight_quantization compression_training quantize_training
        zero_optimization.sub_group_size zero_optimization.round_robin_gradients zero_optimization.parameter_alignment
        zero_optimization.elastic_checkpoint zero_optimization.load_from_fp32_weights zero_optimization.legacy_stage1
        zero_optimization.offload_param zero_optimization.cpu_offload_param zero_optimization.zenflow
        zero_optimization.zero_hpz_partition_size zero_optimization.mics_shard_size
        zero_optimization.mics_hierarchical_params_gather zero_optimization.pipeline_loading_checkpoint
        zero_optimization.stage3_gather_16bit_weights_on_model_save
        zero_optimization.stage3_gather_fp16_weights_on_model_save
        zero_optimization.save_muon_momentum_buffer_in_memory zero_optimization.leaf_module
        zero_optimization.offload_optimizer.nvme_path zero_optimization.offload_optimizer.buffer_count
        zero_optimization.offload_optimizer.pipeline_read zero_optimization.offload_optimizer.pipeline_write
        zero_optimization.offload_optimizer.fast_init zero_optimization.offload_optimizer.ratio
        zero_optimization.offload_optimizer.super_offload zero_optimization.offload_optimizer.cpuadam_cores_perc
        """,
    "it changes what is trained, and is not tested here": """
        data_efficiency curriculum_learning progressive_layer_drop eigenvalue sparse_attention sparse_gradients amp
        prescale_gradients gradient_predivide_factor gradient_allreduce_op managed_gradient_accumulation
        seq_parallel_communication_data_type disable_allgather dataloader_drop_last fp16.auto_cast
        fp16.fp16_master_weights_and_grads zero_optimization.zero_quantized_weights
        zero_optimization.zero_quantized_gradients zero_optimization.zero_quantized_nontrainable_weights
        """,
    "report.html says where the time of a stage goes, and metrics.jsonl holds its metrics": """
        wall_clock_breakdown memory_breakdown dump_state flops_profiler comms_logger timers csv_monitor comet log_level
        """,
    "it is not tested here": """
        autotuning vocabulary_size graph_harvesting disable_python_gc
        zero_optimization.contiguous_gradients zero_optimization.ignore_unused_parameters
        zero_optimization.allgather_partitions zero_optimization.compute_grad_norm
        zero_optimization.memory_efficient_linear zero_optimization.override_module_apply
        zero_optimization.cpu_offload zero_optimization.cpu_offload_use_pin_memory
        zero_optimization.enable_sanity_checks zero_optimization.log_trace_cache_warnings
        """,
}
OF_REDUCTION = ("reduce_bucket_size", "overlap_comm", "reduce_scatter", "use_multi_rank_bucket_allreduce")
"""How gradients are reduced, which DeepSpeed's BF16_Optimizer does at the end of the backward pass, in its own way."""
NOT_TAKEN = {key: reason for reason, keys in _REFUSALS.items() for key in keys.split()}
"""Keys of DeepSpeed's that a stage does not take, and why."""


class _Keys(Strict):
    """A section of DeepSpeed's config. A key that is not given is left to DeepSpeed."""

    def given(self) -> dict[str, Any]:
        """What was given, as DeepSpeed's JSON has it."""
        return self.model_dump(mode="json", exclude_none=True)


class OffloadOptimizer(_Keys):
    """ZeRO-Offload: optimizer state and update in host memory."""

    device: Literal["cpu", "none"] = "none"
    pin_memory: bool | None = None


class ZeroOptimization(_Keys):
    """How ZeRO communicates, and where the optimizer works."""

    reduce_bucket_size: int | None = Field(None, ge=1)
    allgather_bucket_size: int | None = Field(None, ge=1)
    overlap_comm: bool | None = None
    reduce_scatter: bool | None = None
    use_multi_rank_bucket_allreduce: bool | None = None
    offload_optimizer: OffloadOptimizer | None = None
    stage3_prefetch_bucket_size: int | None = Field(None, ge=0)
    stage3_param_persistence_threshold: int | None = Field(None, ge=0)
    stage3_model_persistence_threshold: int | None = Field(None, ge=0)
    stage3_max_live_parameters: int | None = Field(None, ge=0)
    stage3_max_reuse_distance: int | None = Field(None, ge=0)
    stage3_module_granularity_threshold: int | None = Field(None, ge=0)
    stage3_use_all_reduce_for_fetch_params: bool | None = None
    stage3_allgather_sequential: bool | None = None


class LossScale(_Keys):
    """The loss scale of precision fp16; loss_scale 0 is one that follows the gradients."""

    loss_scale: float | None = Field(None, ge=0)
    initial_scale_power: int | None = Field(None, ge=0, le=32)
    loss_scale_window: int | None = Field(None, ge=1)
    hysteresis: int | None = Field(None, ge=1)
    consecutive_hysteresis: bool | None = None
    min_loss_scale: int | None = Field(None, ge=1)


class DeepSpeedKeys(_Keys):
    """The keys that are added to the config which the stage's own keys make for DeepSpeed."""

    zero_optimization: ZeroOptimization | None = None
    fp16: LossScale | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, content: Any) -> Any:
        if isinstance(content, dict) and (problems := list(_problems(content))):
            raise ConfigProblems(problems)
        return content

    @property
    def offloads(self) -> bool:
        """Whether the optimizer works in host memory."""
        offload = self.zero_optimization.offload_optimizer if self.zero_optimization else None
        return offload is not None and offload.device == "cpu"

    def deciding(self) -> dict[str, Any]:
        """The keys that change numbers by more than the order of sums: by which arithmetic the optimizer steps, and the
        loss scale."""
        offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}} if self.offloads else {}
        scale = self.fp16.given() if self.fp16 else {}
        return {**offload, **({"fp16": scale} if scale else {})}

    def require_effect(self, zero_stage: int, precision: str, sums: str | None = None) -> None:
        """Raises ValueError for keys that a stage of this ZeRO stage, precision and sums of bf16 would ignore."""
        problems = [
            f"deepspeed.zero_optimization.{key} is without effect in zero_stage {zero_stage}; leave it out, or choose "
            f"{' or '.join(map(str, _stages(key)))}"
            for key in self._zero
            if zero_stage not in _stages(key)
        ]
        if zero_stage == 1 and sums == "fp32" and not self.offloads:  # DeepSpeed's BF16_Optimizer
            problems += [
                f"deepspeed.zero_optimization.{key} is without effect in zero_stage 1 with gradients summed in fp32; "
                "leave it out, or choose zero_stage 2 or gradient_sums: bf16"
                for key in self._zero
                if key in OF_REDUCTION
            ]
        if self._zero.get("offload_optimizer", {}).get("pin_memory") is not None and not self.offloads:
            place = "deepspeed.zero_optimization.offload_optimizer"
            problems.append(f"{place}.pin_memory is without effect where nothing is offloaded; add device: cpu")
        if self.fp16 and self.fp16.loss_scale and (follow := [k for k in self.fp16.given() if k != "loss_scale"]):
            problems.append(
                f"deepspeed.fp16.{follow[0]} is without effect beside a constant loss_scale; leave one of them out"
            )
        if self.fp16 and self.fp16.given() and precision != "fp16":
            problems.append(f"deepspeed.fp16 belongs to precision fp16, this is {precision}; leave it out")
        if problems:
            raise ConfigProblems(problems)

    def require_none_of(self, keys: Collection[str], beside: str) -> None:
        """Raises ValueError for keys of `zero_optimization` that are not tested beside something else."""
        if found := [key for key in keys if key in self._zero]:
            raise ConfigProblems(
                [f"deepspeed.zero_optimization.{key} is not tested beside {beside}; leave it out" for key in found]
            )

    @property
    def _zero(self) -> dict[str, Any]:
        return self.zero_optimization.given() if self.zero_optimization else {}


def _stages(key: str) -> tuple[int, ...]:
    """The ZeRO stages in which a key of `zero_optimization` does anything."""
    if key.startswith("stage3_"):
        return (3,)
    return (1, 2) if key in ("allgather_bucket_size", "use_multi_rank_bucket_allreduce") else (1, 2, 3)


def _problems(content: dict[str, Any], section: type[_Keys] = DeepSpeedKeys, within: str = "") -> Iterator[str]:
    """What is wrong with the names of keys, at any depth."""
    for key, value in content.items():
        place = f"{within}{key}"
        if place in BY_THE_STAGE:
            yield f"{place} is decided by the stage's {BY_THE_STAGE[place]}; leave it out"
        elif place in NOT_TAKEN:
            yield f"{place} is not taken: {NOT_TAKEN[place]}; leave it out"
        elif key not in section.model_fields:
            yield f"{place} is no key of DeepSpeed's{nearest(str(key), section.model_fields)}"
        elif isinstance(value, dict) and (inner := SECTIONS.get(place)):
            yield from _problems(value, inner, f"{place}.")


SECTIONS: dict[str, type[_Keys]] = {
    "zero_optimization": ZeroOptimization,
    "zero_optimization.offload_optimizer": OffloadOptimizer,
    "fp16": LossScale,
}
"""The mappings inside of `deepspeed:`, by their places."""


def known_keys() -> Iterable[str]:
    """Every key that is known here, nested ones behind a dot: taken, decided by the stage, or not taken."""
    taken = [f"{place}.{key}" for place, section in SECTIONS.items() for key in section.model_fields]
    return {*DeepSpeedKeys.model_fields, *taken, *BY_THE_STAGE, *NOT_TAKEN}

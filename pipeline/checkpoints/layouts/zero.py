"""DeepSpeed's native layout: files for one ZeRO stage and one number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.checkpoints.layouts import bf16_optimizer_write, zero_format, zero_read, zero_stage_0_write, zero_write
from pipeline.checkpoints.layouts.layout import Layout
from pipeline.checkpoints.layouts.zero_files import tag_files
from pipeline.checkpoints.layouts.zero_format import files_of_deepspeed
from pipeline.checkpoints.serialization.byte_stream import OutputFile
from pipeline.checkpoints.state import State
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.checkpoints.layouts import CheckpointLayout
    from pipeline.optim.optimizers import OptimizerSpec


class NativeZero(Layout):
    """As `engine.save_checkpoint` of any stage writes."""

    name = "zero"
    title = "native ZeRO"
    keys = ("zero_stage", "world_size", "bf16", "fp32_sums")

    def detect(self, folder: Path) -> bool:
        return any(folder.glob("*model_states.pt"))

    def read(self, folder: Path) -> State:
        with files_of_deepspeed(folder):
            return zero_read.read(folder)

    def files(self, state: State, folder: Path, target: CheckpointLayout) -> list[OutputFile]:
        if target.zero_stage == 0:
            return [zero_stage_0_write.file(state, folder, world=target.world_size, bf16=target.bf16)]
        if target.fp32_sums:
            return bf16_optimizer_write.files(state, folder, world=target.world_size)
        return zero_write.files(state, folder, stage=target.zero_stage, world=target.world_size, bf16=target.bf16)

    def bytes_on_disk(self, parameters: int, kept: int, target: CheckpointLayout) -> int:
        """Stages below 3 hold the module's weights beside the optimizer's, which are the same in stage 0 and fp32."""
        shared = target.zero_stage == 3 or (target.zero_stage == 0 and not target.bf16)
        module = 0 if shared else 2 if target.bf16 else 4
        return 4 * (parameters + kept) + module * parameters

    def writers(self, parameters: int, target: CheckpointLayout, workers: int) -> int:
        return min(workers, target.world_size if target.zero_stage else 1)

    def facts(self, folder: Path) -> dict[str, Any]:
        with files_of_deepspeed(folder):
            files = tag_files(folder)
            world, model = int(files.model["dp_world_size"]), files.model
            if files.optimizers:
                shard, bf16 = zero_format.open_file(files.optimizers[0]), files.optimizers[0].name.startswith("bf16_")
                kind = {"bf16": bf16, "fp32_sums": zero_read.of_bf16_optimizer(shard)}
                return {"zero_stage": zero_read.stage_of(files, shard), "world_size": world, **kind}
            half = any(tensor.dtype == torch.bfloat16 for tensor in model["module"].values())
            return {"zero_stage": 0, "world_size": world, "bf16": half, "fp32_sums": False}

    def words(self, facts: Mapping[str, Any]) -> str:
        ranks = f"{facts['world_size']} rank{'s' * (facts['world_size'] != 1)}"
        sums = " with gradients summed in fp32" if facts.get("fp32_sums") else ""
        return f"native ZeRO stage {facts['zero_stage']}, {ranks}{f', trained in bf16{sums}' if facts['bf16'] else ''}"

    def require_structure(self, folder: Path, state: State) -> None:
        """Stage 3 keeps a file of shapes and counters for every rank; readers look into the first."""
        facts = self.facts(folder)
        if facts["zero_stage"] != 3:
            return
        first = zero_format.open_file(folder / zero_format.model_file(3), opaque=True)
        for rank in range(1, facts["world_size"]):
            path = folder / zero_format.model_file(3, rank)
            with files_of_deepspeed(path):
                other = zero_format.open_file(path, opaque=True)
                for key in ("dp_world_size", "global_steps", "param_shapes"):
                    if other.get(key) != first.get(key):
                        raise UserError(f"{path}: its {key} is not that of rank 0; files of two checkpoints are mixed")

    def engine_loads(self, stored: CheckpointLayout, engine: CheckpointLayout, optimizer: OptimizerSpec) -> bool:
        """Only what an engine of the same stage and precision has written; the shards of stages 1 to 3 are those of as
        many ranks."""
        ranks = stored.world_size if engine.zero_stage else engine.world_size
        return replace(stored, world_size=ranks) == engine

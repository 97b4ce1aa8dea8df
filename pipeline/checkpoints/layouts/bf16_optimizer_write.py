"""Writing checkpoints of DeepSpeed's BF16_Optimizer, which stage 1 has in bf16 where gradients are summed in float32.

Its optimizer files name no stage, weights are stored with the padding, and all padding counts as the
last rank's (DeepSpeed 0.19.8, `runtime/bf16_optimizer.py`). The rest is as in stage 1."""

from pathlib import Path
from typing import Any

from pipeline.checkpoints.layouts import carried, zero_write
from pipeline.checkpoints.layouts.zero_write import Flat, ZeroWriter
from pipeline.checkpoints.serialization.byte_stream import OutputFile
from pipeline.checkpoints.serialization.torch_archive import TorchArchive
from pipeline.checkpoints.state import State


def files(state: State, folder: Path, *, world: int) -> list[OutputFile]:
    """The files of `state` (module names) for `world` ranks. Raises UserError as those of other stages do, and for a
    loss scale, which only training in fp16 has."""
    where = "of ZeRO stage 1 in bf16 with gradients summed in fp32"
    carried.require_no_loss_scale(state.scaling, where, "leave out --fp32-sums")
    return zero_write.files(state, folder, stage=1, world=world, bf16=True, kind=_Writer)


class _Writer(ZeroWriter):
    whole_matrices = False

    def inner(self, archive: TorchArchive, rank: int, base: dict[str, Any]) -> dict[str, Any]:
        return {
            **carried.stored(self.state.scaling, archive),  # a constant scale too, which DeepSpeed passes over here
            "base_optimizer_state": base,
            "single_partition_of_fp32_groups": [
                archive.placeholder(flat.slices(self.state.tensors, rank)) for flat in self.flats
            ],
            "group_paddings": [_padding(flat) if rank == self.world - 1 else 0 for flat in self.flats],
            "partition_count": [flat.partition.world for flat in self.flats],
            "ds_version": self.version,
            "param_slice_mappings": [flat.fragments(rank) for flat in self.flats],
        }


def _padding(flat: Flat) -> int:
    """Numbers that make the whole group divisible."""
    return flat.partition.flat * flat.partition.world - sum(flat.partition.sizes)

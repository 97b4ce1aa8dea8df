"""Writing checkpoints of ZeRO stage 0: one file with the module and torch's own optimizer state, which numbers the
parameters. Their names go along as this pipeline's engine adds them (`zero_stage_0.NAMES`)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoints.layouts import carried
from pipeline.checkpoints.layouts.zero_format import STEP, model_file
from pipeline.checkpoints.layouts.zero_stage_0 import NAMES
from pipeline.checkpoints.layouts.zero_write import ZeroWriter
from pipeline.checkpoints.serialization.byte_stream import OutputFile, TensorSlice, whole
from pipeline.checkpoints.serialization.torch_archive import TorchArchive
from pipeline.checkpoints.state import Group, State

STATIC = {"dynamic_loss_scale": False, "cur_scale": 1.0, "cur_iter": 0}
"""The loss scale of bf16."""


def file(state: State, folder: Path, *, world: int, bf16: bool = False) -> OutputFile:
    """The one file of `state` (module names) for `world` ranks. Raises UserError for a loss scale, which only training
    in fp16 has."""
    carried.require_no_loss_scale(state.scaling, "of ZeRO stage 0 in fp32 or bf16", "choose stage 1, 2 or 3")
    return _Writer(state, [], folder, 0, world, bf16).whole()


class _Writer(ZeroWriter):
    """Parameters and their state are whole, each under its number."""

    def whole(self) -> OutputFile:
        archive, names = TorchArchive(), [list(group.names) for group in self.state.groups]
        tree = {**self.common(archive, self.module(archive)), "param_shapes": None, "frozen_param_shapes": None}
        tree |= {"optimizer": self._optimizer(archive), NAMES: names}
        return archive.file(model_file(0), tree, self.folder)

    def _optimizer(self, archive: TorchArchive) -> dict[str, Any]:
        """torch's state_dict; in bf16 that of DeepSpeed's optimizer around it, with the weights in float32."""
        groups: list[dict[str, Any]] = []
        states: dict[int, dict[str, Any]] = {}
        for group, (slots, keeps_step) in zip(self.state.groups, self.stored, strict=True):
            numbers = range(len(states), len(states) + len(group.names))
            groups.append({**group.hyper, "params": list(numbers)})
            kept = (self._kept(archive, name, slots, keeps_step) for name in group.names)
            states |= dict(zip(numbers, kept, strict=True))
        inner = {"state": states if self.holds_state else {}, "param_groups": groups}
        masters = [self._masters(archive, group) for group in self.state.groups]
        return {**STATIC, "optimizer_state_dict": inner, "fp32_groups": masters} if self.bf16 else inner

    def _kept(self, archive: TorchArchive, name: str, slots: list[str], keeps_step: bool) -> dict[str, Any]:
        """What the optimizer keeps of one parameter; a slot without a tensor (a fresh moment) is zeros."""
        state, weights = self.state, self.state.tensors[name]
        kept: dict[str, Any] = {STEP: archive.value(torch.tensor(state.steps.get(name, 0.0)))} if keeps_step else {}
        for slot in slots:
            stored = TensorSlice(state.slots.get(slot, {}).get(name), 0, weights.numel)
            kept[slot] = archive.placeholder([stored], weights.shape)
        values = {key: values[name] for key, values in state.scalars.items() if name in values}
        return kept | {key: carried.stored(value, archive) for key, value in values.items()}

    def _masters(self, archive: TorchArchive, group: Group) -> list[Tensor]:
        weights = (self.state.tensors[name] for name in group.names)
        return [archive.placeholder(whole(tensor), tensor.shape) for tensor in weights]

"""DeepSpeed's Muon: how it is built for an engine, and what its steps do that others' do not."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor
from torch.optim import Optimizer

from pipeline.optim.optimizers import USE_MUON
from pipeline.training.update_gate import UpdateGate

MOMENTUM = "momentum_buffer"


def build(groups: list[dict[str, Any]], fused: bool | None) -> Optimizer:
    """DeepSpeed's Muon over `groups`, whose other half is torch's AdamW, by its fused kernel or not. Parameters stay in
    the order in which they are given, and are marked for the stages of ZeRO, which orthogonalise."""
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    _leave_uncompiled()
    for group in groups:
        for parameter in group["params"]:
            setattr(parameter, USE_MUON, group[USE_MUON])
    given = [list(group["params"]) for group in groups]
    groups = [{"lr": 0.0, **group} for group in groups]
    built: Optimizer = MuonWithAuxAdam(groups, torch.optim.AdamW, {"fused": fused})
    for group, parameters in zip(built.param_groups, given, strict=True):
        group["params"] = parameters
    return built


@cache
def _leave_uncompiled() -> None:
    """DeepSpeed has the update and its iterations compiled, each by itself: minutes on a CPU, and a shape may come to
    another kernel in a process that has resumed."""
    from deepspeed.runtime.zero.muon import muon_optimizer, original_muon

    for name in ("zeropower_via_newtonschulz5", "zeropower_via_gram_newtonschulz", "muon_update"):
        setattr(original_muon, name, torch.compiler.disable(getattr(original_muon, name)))
    muon_optimizer.muon_update = original_muon.muon_update


class MuonGate(UpdateGate):
    """Every stage of ZeRO moves Muon's momentum before it calls the optimizer: an update that is left out puts it
    back."""

    def __init__(self, engine: DeepSpeedEngine):
        super().__init__(engine)
        self._momentum: dict[Tensor, Tensor] = {}

    def ask(self, question: Callable[[], bool] | None) -> None:
        super().ask(question)
        state = self.inner.state.items() if question else ()
        self._momentum = {parameter: kept[MOMENTUM].clone() for parameter, kept in state if MOMENTUM in kept}

    def _leave_out(self) -> None:
        for parameter, kept in self.inner.state.items():
            if parameter in self._momentum:
                kept[MOMENTUM].copy_(self._momentum[parameter])
            elif MOMENTUM in kept:
                kept[MOMENTUM].zero_()

    def told(self, norm: float) -> float | None:
        """Nothing, where it is finite: ZeRO's own optimizers take it when matrices are orthogonalised already, which
        BF16_Optimizer and stage 0 do not."""
        optimizer = self._engine.optimizer
        behind = hasattr(optimizer, "_commit_muon_momentum") or hasattr(optimizer, "_apply_muon_to_accumulated_grads")
        return None if behind and math.isfinite(norm) else norm

"""torch.compile, layer by layer.

Of each layer the forward is compiled, with its activation checkpoint, not the module: parameters keep their names,
and DeepSpeed's hooks stay around what is compiled. Under ZeRO-3 a layer is gathered as a whole (DeepSpeed's leaf
module): no hook lies inside, where it would break the graph. Equal layers share a graph; there is one for training and
one for evaluation. Dropout draws from torch's generator, the masks of layers that are not compiled.
"""

import time
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses
from deepspeed.utils import set_z3_leaf_module
from torch import Tensor, nn

from pipeline.config.schema import TrainStage
from pipeline.errors import UserError, one_line

BEATS = 4
"""A second, for who looks whether a rank that compiles still works."""


def choose(device: torch.device, zero_stage: int) -> bool:
    """Whether layers are compiled where `compile` is `auto`: on GPUs where it works. To be called by all ranks."""
    return device.type == "cuda" and zero_stage != 3 and not _fails_anywhere(device)


def require(stage: TrainStage, device: torch.device) -> None:
    """Raises UserError where the layers are to be compiled and some rank cannot, or wrong gradients were seen. To be
    called by all ranks."""
    if device.type == "cuda" and stage.zero_stage == 3:
        raise UserError(
            f"stages.{stage.name}.compile: compiled layers under ZeRO-3 had wrong gradients on a GPU, and what was "
            "done about it has not been seen to mend them on one; set it to false, or choose zero_stage 2"
        )
    own = reason_against(device)
    if _any_rank(own is not None, device):
        raise UserError(
            f"stages.{stage.name}.compile: torch.compile does not work on all ranks ({own or 'on this one it does'}); "
            "install a C++ compiler and Python's headers, on GPUs Triton, or set it to false (a stage that was begun "
            "compiled needs --allow compile)"
        )


def reason_against(device: torch.device) -> str | None:
    """What keeps torch from compiling a little function for the device; None where it does."""
    try:
        torch.compile(_little, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # torch raises many kinds: of the compiler, of Triton, of the system
        return one_line(error)
    return None


def _little(numbers: Tensor) -> Tensor:
    return torch.tanh(numbers) + numbers


def _any_rank(own: bool, device: torch.device) -> bool:
    failures = torch.tensor(float(own), device=device)
    dist.all_reduce(failures)
    return bool(failures)


def _fails_anywhere(device: torch.device) -> bool:
    return _any_rank(reason_against(device) is not None, device)


def compile_layers(layers: Iterable[nn.Module], zero_stage: int) -> None:
    """Have the forward of each layer compiled when it first runs. To be called before DeepSpeed hooks into them."""
    from torch._inductor import config

    config.fallback_random = True
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=False)
        if zero_stage == 3:
            set_z3_leaf_module(layer, True)


def restore_linear() -> None:
    """Give torch its own linear function back, for which an engine of ZeRO-3 leaves DeepSpeed's in the process:
    compiled for a GPU that one gave wrong gradients (torch 2.11)."""
    torch.nn.functional.linear = getattr(
        InsertPostInitMethodToModuleSubClasses, "linear_bk", torch.nn.functional.linear
    )


class CompileTime:
    """Tells the seconds of each compilation of this process, until it is closed."""

    def __init__(self, tell: Callable[[float], None]):
        from torch._dynamo.callback import callback_handler

        self._tell, self._handler = tell, callback_handler
        self._begun: float | None = None
        self._done = 0
        callback_handler.register_start_callback(self._start)
        callback_handler.register_end_callback(self._end)

    def moved(self) -> int:
        """Another number as long as something is being compiled."""
        return self._done if self._begun is None else int(BEATS * time.perf_counter())

    def close(self) -> None:
        """Forget what was compiled: torch compiles so many variants of a code only, and another engine has its own."""
        self._handler.remove_start_callback(self._start)
        self._handler.remove_end_callback(self._end)
        torch._dynamo.reset()

    def _start(self, _: object) -> None:
        self._begun = time.perf_counter()

    def _end(self, _: object) -> None:
        if self._begun is not None:
            self._tell(time.perf_counter() - self._begun)
        self._begun, self._done = None, self._done + 1

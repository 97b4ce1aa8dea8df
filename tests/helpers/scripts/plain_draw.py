"""An ordinary DeepSpeed script whose model, optimizer and checkpoints are what a draw says (tests/helpers/draws.py).

Every rank calls `account` with the draw as a job, and save / load ({"dir", "tag"} or null), stage, world and universal
of the engine that is built. What it returns is what the engine holds then, its numbers as hashes of their bits.
"""

import argparse
import collections
import datetime
import os
import pathlib
import random
from collections.abc import Callable, Iterator

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import deepspeed.ops
import numpy as np
import torch
import torch.distributed as dist
import transformers
from deepspeed.runtime.lr_schedules import WarmupLR
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch.optim import lr_scheduler

from tests.helpers.scripts.plain_everything import COMMON, bits, said, spelled


class Lion(torch.optim.Optimizer):
    """The sign of a moving mean (Chen et al., arXiv:2302.06675)."""

    def __init__(self, params: list, lr: float):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99), "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                mean = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
                fast, slow = group["betas"]
                parameter.add_((mean * fast + parameter.grad * (1 - fast)).sign_(), alpha=-group["lr"])
                mean.mul_(slow).add_(parameter.grad, alpha=1 - slow)


OPTIMIZERS: dict[str, Callable] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    "adam": lambda groups: torch.optim.Adam(groups, lr=1e-2, betas=(0.8, 0.95)),
    "amsgrad": lambda groups: torch.optim.AdamW(groups, lr=1e-2, amsgrad=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.8, nesterov=True),
    "lion": lambda groups: Lion(groups, lr=1e-3),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=1e-2, initial_accumulator_value=0.1),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-3, momentum=0.9, centered=True),
    "radam": lambda groups: torch.optim.RAdam(groups, lr=1e-2),
    "adamax": lambda groups: torch.optim.Adamax(groups, lr=1e-2),
    "adadelta": lambda groups: torch.optim.Adadelta(groups, lr=1.0),
    "nadam": lambda groups: torch.optim.NAdam(groups, lr=1e-2),
    "rprop": lambda groups: torch.optim.Rprop(groups, lr=1e-2),
    "asgd": lambda groups: torch.optim.ASGD(groups, lr=1e-2),
}
SCHEDULERS: dict[str, Callable] = {
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (n + 1)),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=10),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=50, cycle_momentum=False),
    "warmup": lambda optimizer: WarmupLR(optimizer, warmup_num_steps=5),
    "chained": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)], milestones=[2]
    ),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer),
}


class Bunch(dict):
    """A dict with an attribute, as many packages have one."""


SHARED = torch.arange(6.0)
CLIENT: dict[str, object] = {
    "epoch": 3,
    "nan": [float("nan"), float("inf"), -0.0],
    "text": "as it is\n\0",
    "bytes": b"\0\xff",
    "none": None,
    "rng": torch.arange(5, dtype=torch.uint8),
    "nested": {"best": [1, 2.5, (True, None)], "more": {"deeper": torch.tensor([1.5])}},
    "tuple": (1, (2,), []),
    "set": {1, "a"},
    "numbered": {0: "a", 1.5: "b", (1, 2): "c"},
    "view": torch.arange(12.0).view(3, 4).t()[1:],
    "shared": [SHARED[:3], SHARED[3:]],
    "big": 2**70,
    "parameter": torch.nn.Parameter(torch.tensor([0.1, 0.2])),
    "ordered": collections.OrderedDict(b=1, a=2),
    "counter": collections.Counter("abca"),
    "dtype": torch.bfloat16,
    "size": torch.Size([2, 3]),
    "complex": 1 + 2j,
    "half": torch.tensor([[1.5, -0.0]], dtype=torch.bfloat16),
    "void": torch.zeros(0, 3),
    "random": random.Random(1).getstate(),
    "deep": [[[[{"a": [[torch.tensor(True)]]}]]]],
    "sparse": torch.eye(3).to_sparse(),
    "namespace": argparse.Namespace(lr=1e-3),
    "path": pathlib.PurePosixPath("somewhere"),
    "numpy": {"a": np.arange(3), "b": 1},
    "numpy_rng": np.random.RandomState(1).get_state(),
    "moment": datetime.datetime(2026, 1, 1),
    "default": collections.defaultdict(int, a=1),
    "deque": collections.deque([1, 2], maxlen=3),
    "history": collections.defaultdict(list, a=[1.5], b=[torch.tensor(1)]),
    "bunch": Bunch(a=1),
    "keyed": {pathlib.PurePosixPath("a"): 1, "b": 2},
    "listed": [1, np.float64(0.5), {"a": pathlib.PurePosixPath("b")}],
    "kind": argparse.Namespace,
    "group_names": [["a"], ["b"]],
}


def buffer(kind: str) -> torch.Tensor:
    """Numbers that other dtypes than its own cannot hold, where there are such."""
    if kind.startswith("complex"):
        return torch.tensor([1 + 2.0**-20j, -0.0 - 3j, 1 / 3], dtype=getattr(torch, kind))
    made = {
        "int64": torch.tensor([16777217, 2**40 + 1, -3]),
        "bool": torch.tensor([True, False, True]),
        "count": torch.tensor(2**40 + 1),
        "scalar": torch.tensor(1 / 3, dtype=torch.float64),
        "empty": torch.zeros(0, 3, dtype=torch.int32),
        "turned": torch.arange(6.0, dtype=torch.float64).view(2, 3).t() / 7,
        "seen": torch.tensor(0),
        "float64": torch.tensor([1 + 2.0**-50, float("nan")], dtype=torch.float64),
    }
    if kind in made:
        return made[kind]
    numbers = torch.tensor([3.0, 1.5, 0.25, 120.0])
    return numbers.to(getattr(torch, kind))


class Cell(torch.nn.Module):
    """Parameters of any shapes and dtypes, and buffers."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], buffers: list[str], unused: str | None):
        super().__init__()
        self.unused, self.kinds = unused, buffers
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)
        for kind in buffers:
            self.register_buffer(f"b_{kind}", buffer(kind))
        self.register_buffer("passing", torch.ones(2), persistent=False)

    def forward(self, number: torch.Tensor) -> torch.Tensor:
        if "seen" in self.kinds:
            self.b_seen += 1
        total = number * 0
        for turn, (name, parameter) in enumerate(self._parameters.items()):
            if name != self.unused:
                total = total + torch.sin(parameter.float() * (1 + turn) * number).sum()
        return total


class Drawn(torch.nn.Module):
    def __init__(self, job: dict, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        trained = {f"p{n}": torch.nn.Parameter(torch.randn(shape)) for n, shape in enumerate(job["shapes"])}
        frozen = {f"f{n}": self._frozen(*given) for n, given in enumerate(job["frozen"])}
        parameters = [*{**trained, **frozen}.items()]
        first, second = dict(parameters[: len(trained) // 2 + 1]), dict(parameters[len(trained) // 2 + 1 :])
        if job["hollow"]:
            second["hollow"] = torch.nn.Parameter(torch.zeros(0, 3))
        if job["tied"]:
            second["tied"] = trained["p0"]
        buffers = [job["buffers"][start::2] for start in (0, 1)]
        unused = f"p{len(trained) - 1}" if job["unused"] else None
        self.first, self.second = Cell(first, buffers[0], unused), Cell(second, buffers[1], unused)

    @staticmethod
    def _frozen(dtype: str, shape: list[int]) -> torch.nn.Parameter:
        numbers = (torch.randn(shape, dtype=torch.float64) * 3).abs() + 0.25
        return torch.nn.Parameter(numbers.to(getattr(torch, dtype)), requires_grad=False)

    def forward(self, number: torch.Tensor) -> torch.Tensor:
        return self.first(number) + self.second(number).square()


def pretrained(job: dict, seed: int) -> torch.nn.Module:
    """A model of transformers, with the draw's buffers beside its own, and its first parameter frozen."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.from_pretrained(job["config"])
    net = getattr(transformers, config.architectures[0])(config)
    for kind in job["buffers"]:
        net.register_buffer(f"b_{kind}", buffer(kind))
    if job["frozen"]:
        next(net.parameters()).requires_grad_(False)
    return net


def grouped(net: torch.nn.Module, job: dict) -> list[list[torch.nn.Parameter]]:
    """The parameters of each optimizer group."""
    if job["family"]:
        trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        return [[p for p in trained if p.dim() > 1], [p for p in trained if p.dim() == 1]]
    named = {name.rpartition(".")[2]: parameter for name, parameter in net.named_parameters()}
    members = [[] for _ in range(max(job["members"]) + 1)]
    order = [*range(len(job["members"]))]
    for number in reversed(order) if job["turned"] else order:
        members[job["members"][number]].append(named[f"p{number}"])
    if job["hollow"]:
        members[0].append(named["hollow"])
    return members


def groups(net: torch.nn.Module, job: dict) -> list[dict]:
    """The draw's groups, each with a weight decay of its own."""
    decays = job["optimizer"] not in ("lion", "rprop")
    return [
        {"params": params, **({"weight_decay": 0.01 * n} if decays else {})}
        for n, params in enumerate(grouped(net, job))
    ]


def engine_of(job: dict) -> deepspeed.DeepSpeedEngine:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo", verbose=False)
    net = (pretrained if job["family"] else Drawn)(job, job["seed"] + (1000 if job.get("load") else 0))
    precision = job["precision"]
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": job["micro"],
        "zero_optimization": {"stage": job["stage"], **job["zero"]},
        "bf16": {"enabled": precision in ("bf16", "wide")},
        "fp16": {"enabled": precision == "fp16", "initial_scale_power": 18, "hysteresis": 1},
        "data_types": {"grad_accum_dtype": "fp32"} if precision == "wide" else {},
        "checkpoint": {"load_universal": job.get("universal", False)},
        **COMMON,
    }
    built, *_ = deepspeed.initialize(
        model=net,
        optimizer=OPTIMIZERS[job["optimizer"]](groups(net, job)),
        lr_scheduler=SCHEDULERS[job["scheduler"]] if job["scheduler"] else None,
        dist_init_required=False,
        config=config,
    )
    return built


def client(job: dict) -> dict:
    own = {"ranks": f"of rank {dist.get_rank()}"}
    return {key: {**CLIENT, **own}[key] for key in job["client"]}


def account(job: dict) -> dict:
    """Load, train, save, and say what the engine holds."""
    engine, told = engine_of(job), client(job)
    if job.get("load"):
        strict = not job["partial"]
        found, told = engine.load_checkpoint(job["load"]["dir"], tag=job["load"]["tag"], load_module_strict=strict)
        assert found is not None
    if job.get("save"):
        train(engine, job)
        place, partial = job["save"], job["partial"]
        engine.save_checkpoint(place["dir"], place["tag"], client_state=told, exclude_frozen_parameters=partial)
    held = {**dict(_tensors(engine, job)), **_values(engine, job), **dict(_client(told, job))}
    dist.barrier()
    engine.destroy()
    return held


def train(engine: deepspeed.DeepSpeedEngine, job: dict) -> None:
    for step in range(job["steps"] * job["micro"] + job["pending"]):
        generator = torch.Generator().manual_seed(100 * step + dist.get_rank())
        engine.backward(loss_of(engine, job, generator))
        engine.step()


def loss_of(engine: deepspeed.DeepSpeedEngine, job: dict, generator: torch.Generator) -> torch.Tensor:
    if not job["family"]:
        return engine(torch.rand((), generator=generator))
    config = engine.module.config
    if size := getattr(config, "image_size", None):
        inputs = {"pixel_values": torch.rand(2, 3, size, size, generator=generator).to(engine.module.dtype)}
    else:
        inputs = {"input_ids": torch.randint(2, config.vocab_size, (2, 8), generator=generator)}
    return engine(**inputs).logits.float().square().mean()


def _client(told: dict, job: dict) -> Iterator[tuple[str, str]]:
    """Nested keys one by one."""
    for key in (key for key in job["client"] if key in told):
        value = told[key]
        if type(value) is dict:
            yield from ((f"client {key}.{spelled(inner)}", said(part)) for inner, part in value.items())
        sparse = isinstance(value, torch.Tensor) and value.layout != torch.strided
        yield f"client {key}", type(value).__name__ + ("" if sparse or type(value) is dict else f" {said(value)}")


def _tensors(engine: deepspeed.DeepSpeedEngine, job: dict) -> Iterator[tuple[str, str]]:
    kept = engine.module.state_dict()
    yield from ((f"buffer {name}", bits(value)) for name, value in engine.module.named_buffers() if name in kept)
    masters = dict(_masters(engine)) if not job["stage"] else {}
    if job["stage"] and hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    slots, whole = sorted(_slots(engine)), job["stage"] in (1, 2) and job["precision"] == "fp32"
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad or name.endswith("hollow"):
            with deepspeed.zero.GatheredParameters(parameter, enabled=job["stage"] == 3):
                yield f"frozen {name}", bits(parameter.data)
        elif job["stage"]:
            yield f"weight {name}", bits(parameter.data if whole else safe_get_full_fp32_param(parameter))
            yield from _begun({f"{slot} {name}": safe_get_full_optimizer_state(parameter, slot) for slot in slots})
        else:
            master = masters.get(id(parameter), parameter)
            yield f"weight {name}", bits(master)
            state = torch_optimizer(engine).state.get(master, {})
            yield from _begun({f"{slot} {name}": state[slot] for slot in slots if slot in state})


def _begun(state: dict[str, torch.Tensor]) -> Iterator[tuple[str, str]]:
    """Without the zeros that an optimizer starts with, which it makes at its first step or before."""
    return ((key, bits(value)) for key, value in state.items() if value is not None and value.any())


def torch_optimizer(engine: deepspeed.DeepSpeedEngine) -> torch.optim.Optimizer:
    optimizer = engine.optimizer
    return (
        optimizer
        if isinstance(optimizer, torch.optim.Optimizer) and not hasattr(optimizer, "optimizer")
        else optimizer.optimizer
    )


def _masters(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[int, torch.Tensor]]:
    """Of stage 0 in half precision."""
    optimizer = engine.optimizer
    for halves, wholes in zip(
        getattr(optimizer, "fp16_groups", ()), getattr(optimizer, "fp32_groups", ()), strict=True
    ):
        yield from zip(map(id, halves), wholes, strict=True)


def _slots(engine: deepspeed.DeepSpeedEngine) -> set[str]:
    """The state that is kept for every number of a parameter."""
    return {
        key
        for parameter, state in torch_optimizer(engine).state.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and key != "step" and value.shape == parameter.shape
    }


def _values(engine: deepspeed.DeepSpeedEngine, job: dict) -> dict:
    optimizer, slots = torch_optimizer(engine), _slots(engine)
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    held = {
        "counter global_steps": engine.global_steps,
        "counter global_samples": engine.global_samples,
        "counter skipped_steps": engine.skipped_steps,
        "lr_scheduler": said(engine.lr_scheduler.state_dict() if engine.lr_scheduler else None),
        "loss_scaler": said(vars(scaler) if scaler and scaler.dynamic else None),
    }
    for number, group in enumerate(optimizer.param_groups):
        held |= {f"hyper{number} {key}": said(value) for key, value in group.items() if key != "params"}
    for key in {key for state in optimizer.state.values() for key in state} - slots:
        if values := {said(state[key]) for state in optimizer.state.values() if state.get(key)}:
            held[f"scalar {key}"] = sorted(values)
    return held

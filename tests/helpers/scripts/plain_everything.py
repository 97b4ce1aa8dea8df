"""An ordinary DeepSpeed script whose model and checkpoints hold one of everything: buffers of every dtype, frozen and
tied parameters, a schedule of learning rates, a client state, a loss scale that moves.

A job: stage, seed, bf16, fp16, zero (more keys of zero_optimization), frozen (whether a layer is), scheduler,
optimizer, universal, load / save ({"dir", "tag"} or null), steps. Every rank calls `account`; what it returns is what
the engine holds then, its numbers as hashes of their bits.
"""

import hashlib
import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

COMMON = {"steps_per_print": 10**9, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
"""Of DeepSpeed's JSON, what every script of these tests sets."""
WIDTH = 12
OPTIMIZERS = {
    "adamw": (lambda groups: torch.optim.AdamW(groups, lr=1e-2), ("exp_avg", "exp_avg_sq")),
    "sgd": (lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9), ("momentum_buffer",)),
    "plain sgd": (lambda groups: torch.optim.SGD(groups, lr=1e-2), ()),
}


class Everything(torch.nn.Module):
    def __init__(self, seed: int, frozen: bool):
        super().__init__()
        torch.manual_seed(seed)
        self.words = torch.nn.Embedding(16, WIDTH)
        self.middle = torch.nn.Linear(WIDTH, WIDTH)
        self.fixed = torch.nn.Linear(WIDTH, WIDTH).requires_grad_(not frozen)
        self.head = torch.nn.Linear(WIDTH, 16, bias=False)
        self.head.weight = self.words.weight
        for name, value in self.values(seed).items():
            self.register_buffer(name, value)

    @staticmethod
    def values(seed: int) -> dict[str, torch.Tensor]:
        return {
            "offsets": torch.tensor([16777217 + seed, 2**40 + seed, -3]),
            "count": torch.tensor(2**40 + seed),
            "mask": torch.tensor([seed % 2 == 0, True, seed % 3 == 0]),
            "turns": torch.polar(torch.ones(4), torch.arange(4.0) + seed),
            "mean": torch.full((3,), seed / 7),
        }

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.fixed(torch.tanh(self.middle(self.words(ids)))))
        return torch.nn.functional.cross_entropy(self.head(hidden).float(), ids.roll(1))


def engine_of(job: dict) -> deepspeed.DeepSpeedEngine:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo", verbose=False)
    net = Everything(job["seed"], job.get("frozen", True))
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": job["stage"], **job.get("zero", {})},
        "bf16": {"enabled": job.get("bf16", False)},
        "fp16": {"enabled": job.get("fp16", False), "initial_scale_power": 18, "hysteresis": 1},
        "checkpoint": {"load_universal": job.get("universal", False)},
        **COMMON,
    }

    def falling(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (n + 1))

    built, *_ = deepspeed.initialize(
        model=net,
        optimizer=OPTIMIZERS[job.get("optimizer", "adamw")][0](groups),
        lr_scheduler=falling if job.get("scheduler", True) else None,
        dist_init_required=False,
        config=config,
    )
    return built


def client() -> dict:
    return {"epoch": 3, "rng": torch.arange(7, dtype=torch.uint8), "nested": {"best": [1, 2.5, (True, None)]}}


def account(job: dict) -> dict:
    """Load, train, save, and say what the engine holds. A load without a step afterwards says what was restored."""
    engine, told = engine_of(job), client()
    if job.get("load"):
        found, told = engine.load_checkpoint(job["load"]["dir"], tag=job["load"]["tag"])
        assert found is not None
    for step in range(job.get("steps", 0)):
        generator = torch.Generator().manual_seed(100 * step + dist.get_rank())
        loss = engine(torch.randint(16, (8,), generator=generator))
        engine.backward(loss)
        engine.step()
    if job.get("save"):
        engine.save_checkpoint(job["save"]["dir"], tag=job["save"]["tag"], client_state=client())
    held = {**tensors_of(engine, job), **values_of(engine), "client": said({key: told.get(key) for key in client()})}
    dist.barrier()
    engine.destroy()
    return held


def tensors_of(engine: deepspeed.DeepSpeedEngine, job: dict) -> dict:
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    held = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            with deepspeed.zero.GatheredParameters(parameter, enabled=job["stage"] == 3):
                held[f"frozen {name}"] = bits(parameter.data)
            continue
        whole = job["stage"] < 3 and parameter.dtype == torch.float32
        held[f"fp32 {name}"] = bits(parameter.data if whole else safe_get_full_fp32_param(parameter))
        for slot in OPTIMIZERS[job.get("optimizer", "adamw")][1]:
            state = engine.optimizer.state.get(parameter, {}) if not job["stage"] else {}
            value = safe_get_full_optimizer_state(parameter, slot) if job["stage"] else state.get(slot)
            held[f"{slot} {name}"] = None if value is None else bits(value)
    return held | {f"buffer {name}": bits(value) for name, value in engine.module.named_buffers()}


def values_of(engine: deepspeed.DeepSpeedEngine) -> dict:
    schedule = engine.lr_scheduler.state_dict() if engine.lr_scheduler else None
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    groups = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    return {
        "counters": [engine.global_steps, engine.global_samples, engine.skipped_steps],
        "schedule": said(schedule),
        "scale": said(vars(scaler) if scaler and scaler.dynamic else None),
        "groups": said(groups),
    }


def bits(tensor: torch.Tensor) -> str:
    """Dtype, shape, and a hash of the bytes."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(raw).hexdigest()[:16]}"


def said(value: object) -> str:
    """A value in words that differ where it does."""
    if isinstance(value, torch.Tensor):
        return bits(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {said(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, list | tuple):
        return type(value).__name__ + "(" + ", ".join(map(said, value)) + ")"
    return repr(value)


def spelled(key: object) -> str:
    """A key of a dict in words; one that is no plain value by its class."""
    plain = key is None or isinstance(key, str | int | float | tuple)
    return str(key) if plain else f"{type(key).__module__}.{type(key).__qualname__}"

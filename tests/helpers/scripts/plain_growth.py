"""An ordinary DeepSpeed script that trains a GPT-2 of any size, with optimizer groups by a rule of its own, a schedule
of learning rates and a client state.

A job: stage, sizes (of the config), rule (a key of RULES), frozen (a part of names, or null), zero, bf16, steps, load /
save ({"dir", "tag"} or null), fresh (whether the schedule is left as it starts). Every rank calls `account`; what it
returns is what the engine holds then, its numbers as hashes of their bits.
"""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from transformers import GPT2Config, GPT2LMHeadModel

from tests.helpers.scripts.plain_everything import COMMON, said, tensors_of, values_of

Named = list[tuple[str, torch.nn.Parameter]]


def in_one(named: Named) -> list[dict]:
    return [{"params": [parameter for _, parameter in named]}]


def as_trainer(named: Named) -> list[dict]:
    """As transformers' Trainer: all decay but biases and norms, positions too."""
    decayed = [p for name, p in named if p.dim() > 1]
    return [
        {"params": decayed, "weight_decay": 0.1},
        {"params": [p for _, p in named if p.dim() == 1], "weight_decay": 0.0},
    ]


def by_layer(named: Named) -> list[dict]:
    """Two rates, the first layer's and all others'."""
    first = [p for name, p in named if ".h.0." in name]
    return [{"params": [p for name, p in named if ".h.0." not in name]}, {"params": first, "lr": 1e-3}]


RULES = {"one": in_one, "trainer": as_trainer, "layers": by_layer}


def engine_of(job: dict) -> deepspeed.DeepSpeedEngine:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo", verbose=False)
    torch.manual_seed(job["stage"])
    net = GPT2LMHeadModel(GPT2Config(**job["sizes"], embd_pdrop=0, attn_pdrop=0, resid_pdrop=0))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not (job.get("frozen") and job["frozen"] in name))
    named = [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": job["stage"], **job.get("zero", {})},
        "bf16": {"enabled": job.get("bf16", False)},
        **COMMON,
    }
    built, *_ = deepspeed.initialize(
        model=net,
        optimizer=torch.optim.AdamW(RULES[job["rule"]](named), lr=1e-2),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (n + 1)),
        dist_init_required=False,
        config=config,
    )
    return built


def account(job: dict) -> dict:
    """Load, train, save, and say what the engine holds."""
    engine, told = engine_of(job), None
    if job.get("load"):
        place, fresh = job["load"], job.get("fresh", False)
        found, told = engine.load_checkpoint(place["dir"], tag=place["tag"], load_lr_scheduler_states=not fresh)
        assert found is not None
    for step in range(job.get("steps", 0)):
        generator = torch.Generator().manual_seed(100 * step + dist.get_rank())
        ids = torch.randint(job["sizes"]["vocab_size"], (2, 8), generator=generator)
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    if job.get("save"):
        engine.save_checkpoint(job["save"]["dir"], tag=job["save"]["tag"], client_state={"epoch": 3})
    epoch = said((told or {}).get("epoch"))
    held = {**tensors_of(engine, job), **values_of(engine), "epoch": epoch}
    dist.barrier()
    engine.destroy()
    return held

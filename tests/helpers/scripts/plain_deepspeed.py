"""An ordinary DeepSpeed script that knows nothing of this project: train a tiny BERT, load and save native checkpoints.

Started under torchrun with one JSON argument: stage, steps, first (number of the first step), seed, bf16, fp16,
fp32_sums (gradients are summed and reduced in float32), zero (more keys of zero_optimization), optimizer (adamw, the
default, sgd, or muon, by DeepSpeed's config), extras (a frozen embedding, a module with a buffer), load / again / save
({"dir", "tag"} or null; `again`: save what was loaded, before any step), universal. Rank 0 prints the losses as JSON.
"""

import json
import os
import sys

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from transformers import BertConfig, BertForMaskedLM

HYPER = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6}
FP32 = {"grad_accum_dtype": "fp32"}
MUON = {"type": "Muon", "params": {"lr": 2e-2, "adam_lr": 1e-3, "momentum": 0.9, "torch_adam": True}}
OPTIMIZERS = {"adamw": (torch.optim.AdamW, HYPER), "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})}


def model(seed: int, extras: bool = False) -> BertForMaskedLM:
    torch.manual_seed(seed)
    return (Extras if extras else BertForMaskedLM)(
        BertConfig(
            vocab_size=101,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


class Extras(BertForMaskedLM):
    """With a frozen parameter, and a buffer that counts what was seen."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.register_buffer("seen", torch.zeros(3))
        self.bert.embeddings.token_type_embeddings.weight.requires_grad_(False)

    def forward(self, *args, **more):
        self.seen += 1
        return super().forward(*args, **more)


def groups(net: torch.nn.Module, hyper: dict) -> list[dict]:
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    return [
        {"params": [p for _, p in named if p.dim() > 1], "weight_decay": 0.1, **hyper},
        {"params": [p for _, p in named if p.dim() == 1], "weight_decay": 0.0, **hyper},
    ]


def loss(net: torch.nn.Module, step: int, rank: int, world: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 + step)
    ids, labels = torch.randint(101, (2, 12, 16), generator=generator)
    mine = slice(rank * 12 // world, (rank + 1) * 12 // world)
    logits = net(input_ids=ids[mine]).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[mine].flatten())


def settings(job: dict, world: int) -> dict:
    """DeepSpeed's JSON."""
    muon = job.get("optimizer") == "muon"
    return {
        **({"optimizer": MUON} if muon else {}),
        "train_micro_batch_size_per_gpu": 12 // world,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0 if muon else 0.5,
        "zero_optimization": {"stage": job["stage"], **job.get("zero", {})},
        "bf16": {"enabled": job.get("bf16", False)},
        "fp16": {"enabled": job.get("fp16", False), "initial_scale_power": 8},
        **({"data_types": FP32, "communication_data_type": "fp32"} if job.get("fp32_sums") else {}),
        "checkpoint": {"load_universal": job.get("universal", False)},
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def supports(job: dict) -> bool:
    """Whether DeepSpeed can train in the job's precision on this device."""
    accelerator = deepspeed.accelerator.get_accelerator()
    asked = {"fp16": accelerator.is_fp16_supported, "bf16": accelerator.is_bf16_supported}
    return all(bool(supported()) for precision, supported in asked.items() if job.get(precision))


def trained_by(net: torch.nn.Module, job: dict) -> dict:
    """What tells DeepSpeed how to train the parameters."""
    if job.get("optimizer") == "muon":
        return {"model_parameters": groups(net, {})}
    optimizer, hyper = OPTIMIZERS[job.get("optimizer", "adamw")]
    return {"optimizer": optimizer(groups(net, hyper))}


def train(job: dict) -> list[float]:
    """The losses of the job's steps, means over all ranks; every rank of the process group calls this."""
    with torch.compiler.set_stance("force_eager"):  # DeepSpeed has Muon compiled, which takes a minute
        return _train(job)


def _train(job: dict) -> list[float]:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo", verbose=False)
    rank, world = dist.get_rank(), dist.get_world_size()
    net = model(job["seed"], job.get("extras", False))
    engine, *_ = deepspeed.initialize(
        model=net, **trained_by(net, job), dist_init_required=False, config=settings(job, world)
    )
    if job.get("load"):
        found, _ = engine.load_checkpoint(job["load"]["dir"], tag=job["load"]["tag"])
        assert found is not None
    if job.get("again"):
        engine.save_checkpoint(job["again"]["dir"], tag=job["again"]["tag"])
    losses = []
    for step in range(job["first"], job["first"] + job["steps"]):
        value = loss(engine, step, rank, world)
        engine.backward(value)
        engine.step()
        total = value.detach().double()
        dist.all_reduce(total)
        losses.append(total.item() / world)
    if job.get("save"):
        engine.save_checkpoint(job["save"]["dir"], tag=job["save"]["tag"])
    dist.barrier()
    engine.destroy()
    return losses


if __name__ == "__main__":
    found = train(json.loads(sys.argv[1]))
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    os._exit(0)  # gloo's threads may abort the interpreter's teardown

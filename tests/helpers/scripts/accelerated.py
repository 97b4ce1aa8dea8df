"""An ordinary script of accelerate that knows nothing of this project: train a model, under DeepSpeed or as DDP does,
and save its state.

To be called on every rank of a process group with a job: config (the folder of its config.json), stage (of ZeRO; None:
DDP), load (a folder of `save_state`, or None), save (the folder to write, or None).
"""

import os

import deepspeed
import deepspeed.ops
import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.state import AcceleratorState
from transformers import AutoConfig, AutoModelForCausalLM

IDS = torch.arange(24).view(2, 12)


def prepared(stage: int | None) -> Accelerator:
    if stage is None:
        return Accelerator(cpu=True)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    return Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))


def train(job: dict) -> float:
    """The loss of IDS: behind two steps, or of what was loaded."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.set_num_threads(1)
    torch.manual_seed(0)
    deepspeed.init_distributed("gloo", verbose=False)
    accelerator = prepared(job["stage"])
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(job["config"]))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    if job["load"]:
        accelerator.load_state(job["load"])
    for _ in range(0 if job["load"] else 2):
        accelerator.backward(model(input_ids=IDS, labels=IDS).loss)
        optimizer.step()
        optimizer.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss.item()
    if job["save"]:
        accelerator.save_state(job["save"])
    accelerator.wait_for_everyone()
    if job["stage"] is not None:
        model.destroy()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)  # what the plugin has left there
    AcceleratorState._reset_state(reset_partial_state=True)
    return loss

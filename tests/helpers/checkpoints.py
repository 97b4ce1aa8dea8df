"""Checkpoints of every kind: in every layout, of an unknown model, and folders as `transformers` saves them."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.checkpoints import CheckpointLayout, publish
from pipeline.checkpoints.serialization.writer_pool import write_files
from pipeline.checkpoints.state import Group, State
from pipeline.checkpoints.tensors import in_memory
from pipeline.config.model_sizes import ModelSizes
from pipeline.optim.optimizers import AdamW, Muon
from tests.helpers.growing import randomised
from tests.helpers.samples import sample

FACTS = {
    "bert-pre-ln": {"kind": "text", "vocab_size": 61, "block": 14, "scored": 3},
    "vit": {"kind": "images", "size": 8, "channels": 3, "class_names": ["a", "b", "c"]},
}
FORMATS = {
    "1 on 3": CheckpointLayout("zero", 1, 3),
    "1 on 2, fp32 sums": CheckpointLayout("zero", 1, 2, bf16=True, fp32_sums=True),
    "2 on 2, bf16": CheckpointLayout("zero", 2, 2, bf16=True),
    "3 on 2": CheckpointLayout("zero", 3, 2),
    "3 on 4": CheckpointLayout("zero", 3, 4),
    "universal": CheckpointLayout("universal"),
    "huggingface": CheckpointLayout("huggingface"),
}
HYPER = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6}
"""Hyper-parameters of every optimizer group; the weight decay is each group's own."""
SLOTS = ("exp_avg", "exp_avg_sq")


def source(folder: Path, layout: CheckpointLayout, variant: str = "bert-pre-ln") -> Path:
    """A checkpoint in mid-training: random weights, moments, 7 steps."""
    return trained(folder / "small", sample(variant), layout)


def trained(final: Path, config: PretrainedConfig, layout: CheckpointLayout) -> Path:
    """The same of any model, published as `final`."""
    weights = randomised(config, seed=1)
    slots = {
        "exp_avg": in_memory((n, t.float() * 0.01) for n, t in randomised(config, seed=2).items()),
        "exp_avg_sq": in_memory((n, t.float() ** 2 * 1e-4) for n, t in randomised(config, seed=3).items()),
    }
    groups = tuple(
        Group(g.names, {**HYPER, "weight_decay": decay})
        for g, decay in zip(checkpoints.fresh_groups(config, AdamW()), (0.1, 0.0), strict=True)
    )
    held = State(
        in_memory((n, t.float()) for n, t in weights.items()),
        slots=slots,
        step=7,
        steps=dict.fromkeys(weights, 7.0),
        groups=groups,
        aliases=models.architecture_of(config).aliases,
    )
    return kept_as(held, final, config, layout)


def kept_as(held: State, final: Path, config: PretrainedConfig, layout: CheckpointLayout) -> Path:
    """A state in published names, as the checkpoint `final`."""
    staged = publish.staging(final)
    checkpoints.write(held, config, staged, layout)
    publish.publish(staged, final, {**layout.as_json(), "step": held.step})
    return final


def by_muon(source: Path, final: Path, layout: CheckpointLayout) -> Path:
    """What `trained` has made, as if by Muon: the first moments of hidden matrices are their momentum."""
    state, config = checkpoints.read(source)
    groups = checkpoints.fresh_groups(config, Muon(weight_decay=0.1))
    hidden = {name for group in groups if group.hyper["use_muon"] for name in group.names}
    slots = {
        "momentum_buffer": {name: state.slots["exp_avg"][name] for name in hidden},
        **{slot: {n: t for n, t in state.slots[slot].items() if n not in hidden} for slot in SLOTS},
    }
    steps = {name: step for name, step in state.steps.items() if name not in hidden}
    return kept_as(replace(state, slots=slots, steps=steps, groups=groups), final, config, layout)


def beside_the_model(folder: Path, layout: CheckpointLayout) -> tuple[Path, State]:
    """A BERT trained by a script whose module has a pooler and a next-sentence head as well, with its optimizer, and
    its state; in module names."""
    config, generator = sample("bert"), torch.Generator().manual_seed(5)
    architecture = models.architecture_of(config)
    shapes = {row.module_name: architecture.shape(row) for row in architecture.rows()}
    order = dict(models.build(config, device="meta").named_parameters())
    shapes = {name: shapes[name] for name in order} | {
        "bert.pooler.dense.weight": (12, 12),
        "bert.pooler.dense.bias": (12,),
        "cls.seq_relationship.weight": (2, 12),
    }
    held, *slots = (
        in_memory((n, torch.rand(s, generator=generator)) for n, s in shapes.items()) for _ in range(len(SLOTS) + 1)
    )
    decayed = tuple(name for name in shapes if len(shapes[name]) > 1)
    groups = decayed, tuple(name for name in shapes if name not in decayed)
    trained = State(
        held,
        slots=dict(zip(SLOTS, slots, strict=True)),
        step=3,
        steps=dict.fromkeys(shapes, 3.0),
        groups=tuple(Group(g, {**HYPER, "weight_decay": d}) for g, d in zip(groups, (0.1, 0.0), strict=True)),
    )
    foreign(folder, trained, layout)
    (folder / "config.json").write_text(models.config_text(config))
    return folder, trained


def configure(name: str, **sizes):
    values = {"layers": 2, "hidden": 12, "heads": 3, "patch": 4 if name == "vit" else None, **sizes}
    return models.family(name).configure(ModelSizes(family=name, **values), FACTS[name])


def published(
    folder: Path,
    name: str = "bert-pre-ln",
    layout: CheckpointLayout = CheckpointLayout("huggingface"),
    **changed: torch.Tensor,
) -> Path:
    """A small checkpoint with every parameter random, published as any other."""
    config = configure(name)
    architecture, generator = models.architecture_of(config), torch.Generator().manual_seed(1)
    weights = {
        r.name: torch.randn(architecture.shape(r), generator=generator) * 0.3 + (r.axes[0].role == "gain")
        for r in architecture.rows()
    }
    groups = tuple(replace(group, hyper={"lr": 0.0}) for group in checkpoints.fresh_groups(config, AdamW()))
    state = State(in_memory({**weights, **changed}.items()), groups=groups, aliases=architecture.aliases)
    final = folder / "small"
    staged = publish.staging(final)
    checkpoints.write(state, config, staged, layout)
    publish.publish(staged, final, {**layout.as_json(), "step": 0, "provenance": {"flops": 1000}})
    return final


def state() -> State:
    """Of no supported model: two groups, a frozen parameter, a tied one, a buffer."""
    generator = torch.Generator().manual_seed(4)
    shapes = {"a": (5, 7), "b": (3,), "c": (1,), "frozen": (2, 3)}
    entries = [in_memory((n, torch.randn(s, generator=generator)) for n, s in shapes.items()) for _ in range(3)]
    slots = {
        slot: {n: e for n, e in held.items() if n != "frozen"} for slot, held in zip(SLOTS, entries[1:], strict=True)
    }
    groups = Group(("a",), {**HYPER, "weight_decay": 0.1}), Group(("b", "c"), {**HYPER, "weight_decay": 0.0})
    return State(
        entries[0],
        slots=slots,
        step=4,
        steps={"a": 4.0, "b": 4.0, "c": 4.0},
        groups=groups,
        aliases={"tied": "a"},
        frozen=("frozen",),
        buffers=in_memory([("mask", torch.ones(4))]),
    )


def foreign(folder: Path, held: State | None = None, layout: CheckpointLayout = CheckpointLayout("zero", 2, 2)) -> Path:
    """Files as DeepSpeed leaves them: no manifest, no config."""
    folder.mkdir(parents=True)
    write_files(checkpoints.files(held or state(), folder, layout), folder)
    return folder


def reseal(folder: Path, content: dict) -> None:
    """Write `content` as the folder's manifest with a right hash of itself: SHA-256 of its JSON with sorted keys."""
    content = {key: value for key, value in content.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({**content, "sha256": digest}, indent=2) + "\n")


def saved(folder: Path, variant: str, dtype: torch.dtype = torch.float32, **sizes: object) -> Path:
    """A model saved by `transformers` itself, gains and biases random too."""
    config = sample(variant, **{"eps": 1e-6, **sizes})
    weights = {name: tensor.float() for name, tensor in randomised(config).items()}
    models.fill(models.build(config), weights.__getitem__).to(dtype).save_pretrained(folder)
    return folder


def target_config_file(path: Path, variant: str, **sizes: object) -> Path:
    """A config.json of the target."""
    path.write_text(sample(variant, **{"eps": 1e-6, **sizes}).to_json_string(use_diff=False))
    return path


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Rewrite the weights of a folder by `edit(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder

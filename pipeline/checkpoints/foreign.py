"""What a folder holds that holds no checkpoint, in words, with the way to one: adapters, caches, other formats."""

from pathlib import Path

from pipeline.checkpoints.layouts.huggingface import FILES
from pipeline.errors import UserError
from pipeline.records.run_folder import read_json

SHOWN = 5
"""Names in one message."""


def explain(folder: Path) -> str:
    """What was sought, what was found, and what helps."""
    for look in (_dead_link, adapter, _hub_cache, _trainer_output, _other_format, _shards_without_index, _misnamed):
        if found := look(folder):
            return found
    held = sorted(path.name for path in folder.iterdir())
    listed = ", ".join(held[:SHOWN]) + (", …" if len(held) > SHOWN else "") if held else "nothing"
    return f"it holds no complete checkpoint; sought were {', '.join(FILES)} and DeepSpeed's files, it holds {listed}"


def absent(path: Path) -> str:
    """Of a folder that is not there, what was perhaps meant."""
    if path.parts and path.parts[0].startswith("~"):
        return "no such folder; '~' is not replaced inside a word, write the path out"
    if len(path.parts) == 2 and not path.parent.exists():
        return f"no such folder; a model of the hub is downloaded first: hf download {path} --local-dir DIR"
    return "no such folder; name a run's stage, a checkpoint folder, or one tag in it"


def _dead_link(folder: Path) -> str | None:
    dead = [name for name in FILES if (folder / name).is_symlink() and not (folder / name).exists()]
    return (
        f"its '{dead[0]}' is a link to {(folder / dead[0]).readlink()}, which is not there; copy it" if dead else None
    )


def adapter(folder: Path) -> str | None:
    """Where a folder holds what PEFT saves, that."""
    if not (folder / "adapter_config.json").exists():
        return None
    try:
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    except UserError:
        base = None
    return (
        f"holds a PEFT adapter (adapter_config.json) and not its base model ({base}); merge the two first: "
        "PeftModel.from_pretrained(base_model, DIR).merge_and_unload().save_pretrained(OUT)"
    )


def _hub_cache(folder: Path) -> str | None:
    snapshots = sorted(path.name for path in folder.glob("snapshots/*") if path.is_dir())
    if not snapshots:
        return None
    return f"is a repository in the cache of the hub; name one of its snapshots: {folder / 'snapshots' / snapshots[-1]}"


def _trainer_output(folder: Path) -> str | None:
    steps = [int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*") if _numbered(path)]
    if not steps:
        return None
    listed = ", ".join(f"checkpoint-{step}" for step in sorted(steps))
    return f"holds checkpoints of a Trainer ({listed}); name one of them: {folder / f'checkpoint-{max(steps)}'}"


def _numbered(path: Path) -> bool:
    return path.is_dir() and path.name.removeprefix("checkpoint-").isdecimal()


SHARDED = "torch's distributed checkpoints (FSDP) are not read; merge their weights: accelerate merge-weights DIR OUT"
FORMATS = {
    "*.gguf": "GGUF files are quantised for inference; download the model's safetensors",
    "tf_model*.h5": "TensorFlow weights are not read; load them by transformers 4 (from_tf=True) and save them again",
    "model.ckpt.*": "TensorFlow weights are not read; load them by transformers 4 (from_tf=True) and save them again",
    "flax_model*.msgpack": "Flax weights are not read; load them by transformers 4 (from_flax=True), save them again",
    "consolidated*": "its publisher's own layout is not read; download the same model's Hugging Face files",
    "*.onnx": "ONNX files are made for inference; download the model's safetensors",
    "*.distcp": SHARDED,
    "*/*.distcp": SHARDED,
}


def _other_format(folder: Path) -> str | None:
    for pattern, way_out in FORMATS.items():
        if found := sorted(path.name for path in folder.glob(pattern)):
            return f"holds '{found[0]}' and none of {', '.join(FILES)}; {way_out}"
    return None


def _shards_without_index(folder: Path) -> str | None:
    for pattern, index in (("model-*-of-*.safetensors", FILES[1]), ("pytorch_model-*-of-*.bin", FILES[3])):
        if found := sorted(path.name for path in folder.glob(pattern)):
            return f"holds '{found[0]}' and no {index}, which lists the tensors; copy that file too"
    return None


def _misnamed(folder: Path) -> str | None:
    for pattern, name in (("*.safetensors", FILES[0]), ("pytorch_model*.bin", FILES[2])):
        if found := sorted(path.name for path in folder.glob(pattern)):
            return f"holds '{found[0]}' and none of {', '.join(FILES)}; if these are its weights, name the file {name}"
    return None

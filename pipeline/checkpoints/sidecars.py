"""What lies beside the weights of a checkpoint: tokenizer, templates, code, licence. All of it goes along, but for what
the result has of its own (config, plan, manifest) and what would say something else than the result: other weights,
what a trainer left, links that lead elsewhere. That is left behind, and named.

A folder goes along whole or not at all.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.checkpoints.layouts import detect_layout
from pipeline.checkpoints.layouts.huggingface import shards, weights_file
from pipeline.checkpoints.publish import STAGING
from pipeline.errors import UserError
from pipeline.records.file_hashes import Algorithm, FileRecord, hashes

logger = logging.getLogger(__name__)

OWN = ("config.json", "manifest.json", "plan.json", "plan.safetensors")
"""The result has its own, or none."""
STALE = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data"),
    *("*.gguf", "*.index.json", "*.index", "*.tflite", "*.pb", "*.npz", "*.pkl", "*.xml", "*.mlmodel"),
    *(
        "trainer_state.json",
        "latest",
        "zero_to_fp32.py",
        "zero_to_torch.py",
        "*.distcp",
        "events.out.tfevents.*",
        "params.json",
    ),
    *("adapter_config.json", "quantize_config.json", "quant_config.json", "flax_model*", "tf_model*"),
)
"""Weights in whatever form, and what belongs to a training or to other weights."""
README, SOURCE_README = "README.md", "README.source.md"
SHOWN = 8
"""Names in one message."""


@dataclass(frozen=True)
class Sidecars:
    """What lies beside the weights of `folder`. kept, left: paths below it; a folder that stays is one of `left`. more:
    of a tag, what lies beside its config where that is above it."""

    folder: Path
    kept: tuple[str, ...]
    left: tuple[str, ...]
    more: "Sidecars | None" = None

    @classmethod
    def of(cls, folder: Path, *, config: bool = True) -> "Sidecars":
        """Of a tag folder in any layout. config: whether the model's config is read, be it above the folder."""
        place = above(folder) if config else None
        return replace(cls._in(folder), more=cls._in(place) if place else None)

    @classmethod
    def _in(cls, folder: Path) -> "Sidecars":
        kept, left, own = [], [], {*OWN, *weight_files(folder)}
        for path in sorted(folder.iterdir()):
            if path.name in own or path.name.startswith(STAGING):
                continue
            files = list(_files(path))
            if files and all(_goes_along(file, folder) for file in files):
                kept += [str(file.relative_to(folder)) for file in files]
            else:
                left.append(path.name + "/" * path.is_dir())
        return cls(folder, tuple(kept), tuple(left if _is_published(folder) else ()))

    @property
    def remark(self) -> str | None:
        """What stays, in words."""
        if not self.left:
            return None
        listed = ", ".join(self.left[:SHOWN]) + (", …" if len(self.left) > SHOWN else "")
        return f"left behind beside the weights that were read: {listed}"

    def copy(
        self, folder: Path, algorithm: Algorithm, *more: str, renamed: Mapping[str, str] | None = None
    ) -> dict[str, FileRecord]:
        """Copy what goes along, and `more`, into the staged `folder`, unless it has such a file, and log what does not.
        Returns the records by name, hashed by `algorithm`. renamed: names that change."""
        names = {name: name for name in (*self.kept, *more) if (self.folder / name).is_file()} | {
            name: new for name, new in (renamed or {}).items() if name in self.kept
        }
        names = {name: new for name, new in names.items() if not (folder / new).exists()}
        for name, new in names.items():
            (folder / new).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / name, folder / new)
        if self.remark:
            logger.warning(f"{self.folder}: {self.remark}")
        beside_config = replace(self.more, left=()).copy(folder, algorithm, renamed=renamed) if self.more else {}
        return hashes(folder, names.values(), algorithm) | beside_config


def above(folder: Path) -> Path | None:
    """The folder above a tag that holds no config where a config lies beside DeepSpeed's `latest`, as a Trainer saves
    it."""
    place = folder.parent
    held = (folder / "config.json").exists() or not ((place / "config.json").exists() and (place / "latest").exists())
    return None if held else place


def _is_published(folder: Path) -> bool:
    layout = detect_layout(folder)
    return layout is not None and layout.published_names


def weight_files(folder: Path) -> Iterator[str]:
    """The files of a Hugging Face folder that hold the weights which are read."""
    file = weights_file(folder) if _is_published(folder) else None
    if file is not None:
        yield file.name
        try:
            yield from (shard.name for shard in shards(file))
        except UserError:  # whoever reads the weights says it
            return


def _files(path: Path) -> Iterator[Path]:
    """A file, or all that is in a folder: what is no folder itself, dead links too. No link to a folder is entered."""
    if path.is_dir() and not path.is_symlink():
        for inside in sorted(path.iterdir()):
            yield from _files(inside)
    else:
        yield path


def _goes_along(file: Path, folder: Path) -> bool:
    """Whether it says the same beside other weights, and lies in the folder, or where the cache of the hub keeps the
    files of a snapshot: `models--NAME/blobs` beside `models--NAME/snapshots/REVISION`."""
    stale = file.name.startswith(".") or any(fnmatchcase(file.name, pattern) for pattern in STALE)
    real, home = file.resolve(), folder.resolve()
    blobs = [home.parent.parent / "blobs"] if home.parent.name == "snapshots" else []
    return not stale and real.is_file() and any(real.is_relative_to(place) for place in (home, *blobs))

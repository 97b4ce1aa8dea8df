"""The layouts of checkpoints, by name. To add one: a file with a `Layout`, and its line here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoints.layouts.huggingface import DTYPES, MAX_SHARD_SIZE, HuggingFace
from pipeline.checkpoints.layouts.layout import Layout
from pipeline.checkpoints.layouts.universal import Universal
from pipeline.checkpoints.layouts.zero import NativeZero
from pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    from pipeline.config.schema import TrainStage

UNIVERSAL, NATIVE, HUGGING_FACE = Universal(), NativeZero(), HuggingFace()
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (UNIVERSAL, NATIVE, HUGGING_FACE)}
"""In the order in which a folder is asked."""


def layout_named(name: str) -> Layout:
    """Raises UserError with the nearest name."""
    if name not in LAYOUTS:
        raise UserError(f"unknown layout '{name}'{nearest(name, LAYOUTS)}")
    return LAYOUTS[name]


def detect_layout(folder: Path) -> Layout | None:
    """Which layout a tag folder has; None when it is no tag folder."""
    return next((layout for layout in LAYOUTS.values() if layout.detect(folder)), None)


def require_layout(folder: Path) -> Layout:
    """The same. Raises UserError when it is no tag folder."""
    if layout := detect_layout(folder):
        return layout
    known = "; ".join(layout.title for layout in LAYOUTS.values())
    raise UserError(f"{folder}: holds no checkpoint of a known layout ({known})")


@dataclass(frozen=True)
class CheckpointLayout:
    """How a checkpoint is written. `zero_stage` and `world_size` count for native ZeRO, `bf16` for its file names,
    `fp32_sums` for stage 1 in bf16, where DeepSpeed has another optimizer if gradients are summed in float32; `dtype`
    and `max_shard_size` (bytes of a file) for Hugging Face files; the others hold float32. Raises UserError for values
    that no layout has."""

    name: str = NATIVE.name
    zero_stage: int = 1
    world_size: int = 2
    bf16: bool = False
    fp32_sums: bool = False
    dtype: str = "float32"
    max_shard_size: int = MAX_SHARD_SIZE

    def __post_init__(self) -> None:
        layout_named(self.name)
        if self.zero_stage not in range(4):
            raise UserError(f"ZeRO stage {self.zero_stage} does not exist; choose 0, 1, 2 or 3")
        if self.fp32_sums and not (self.bf16 and self.zero_stage == 1):
            raise UserError(
                "files of an engine that sums gradients in fp32 (--fp32-sums) differ in ZeRO stage 1 and bf16 alone; "
                "leave it out, or choose --zero-stage 1 --bf16"
            )
        if self.world_size < 1 or self.max_shard_size < 1:
            raise UserError(f"{self.world_size} ranks, files of {self.max_shard_size} bytes: both must be at least 1")
        if self.dtype not in DTYPES:
            raise UserError(f"unknown dtype '{self.dtype}'{nearest(self.dtype, DTYPES)}")

    @classmethod
    def of(cls, stage: TrainStage, world: int) -> CheckpointLayout:
        """The native layout in which a training stage on `world` ranks reads and writes."""
        fp32_sums = stage.zero_stage == 1 and stage.sums == "fp32" and not stage.deepspeed.offloads
        return cls(NATIVE.name, stage.zero_stage, world, stage.precision == "bf16", fp32_sums)

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> CheckpointLayout:
        """The layout that a manifest's facts name; the inverse of `as_json`."""
        layout = layout_named(facts["layout"])
        return cls(layout.name, **{key: facts[key] for key in layout.keys if key in facts})

    @classmethod
    def choose(
        cls, name: str | None, default: Layout, options: dict[str, Any], like: Path | None = None
    ) -> CheckpointLayout:
        """The layout called `name`, else the one that the first of the options belongs to, else the default. Raises
        UserError for options of another layout. options: values of a `CheckpointLayout`'s keys. like: a tag folder of
        which native files take over what the options leave open."""
        owners = {key: layout for layout in LAYOUTS.values() for key in layout.keys}
        layout = layout_named(name) if name is not None else next((owners[key] for key in options), default)
        for key, value in options.items():
            if owners[key] is not layout:
                word = f"no-{key}" if value is False else key
                flag = f"--{word.replace('_', '-')}" + ("" if isinstance(value, bool) else f" {value}")
                raise UserError(
                    f"{flag} belongs to --format {owners[key].name}, not to --format {layout.name}; leave it out"
                )
        kept = _like(like) if like and layout is NATIVE else {}
        if {**kept, **options}.get("zero_stage") != 1 or not {**kept, **options}.get("bf16"):
            kept.pop("fp32_sums", None)
        return cls(layout.name, **{**kept, **options})

    @property
    def kind(self) -> Layout:
        """What the layout answers."""
        return LAYOUTS[self.name]

    @property
    def words(self) -> str:
        """The layout in words."""
        return self.kind.words(self.as_json())

    def how_to_load(self, out: Path, schedule: bool = True) -> str:
        """What a script calls to load DeepSpeed's files, in words. schedule: whether they hold that of the rates, which
        an engine that has one asks for."""
        without = "" if schedule else ", load_lr_scheduler_states=False"
        call = f"engine.load_checkpoint('{out.parent}', tag='{out.name}'{without})"
        return f"; load it with {call}" if self.kind.holds_optimizer else ""

    def as_json(self) -> dict[str, Any]:
        """The name and the values of the layout's keys."""
        return {"layout": self.name, **{key: getattr(self, key) for key in self.kind.keys}}


def _like(folder: Path) -> dict[str, Any]:
    """Stage, ranks and precision of a native tag folder; stage 1 for stage 0, which is written on request."""
    facts = require_layout(folder).facts(folder)
    kept = {key: facts[key] for key in NATIVE.keys if key in facts}
    return kept | ({"zero_stage": 1} if kept.get("zero_stage") == 0 else {})


__all__ = [
    "HUGGING_FACE",
    "LAYOUTS",
    "NATIVE",
    "UNIVERSAL",
    "CheckpointLayout",
    "Layout",
    "detect_layout",
    "layout_named",
    "require_layout",
]

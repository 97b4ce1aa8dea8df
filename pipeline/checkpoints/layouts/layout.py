"""What a layout of checkpoints answers: how it is recognised, read and written, and what it can hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.checkpoints.serialization.byte_stream import OutputFile
from pipeline.checkpoints.state import State

if TYPE_CHECKING:
    from pipeline.checkpoints.layouts import CheckpointLayout
    from pipeline.optim.optimizers import OptimizerSpec


class Layout(ABC):
    """One layout. All that differs between layouts is asked here.

    keys: the keys of a `CheckpointLayout` that belong to it. holds_optimizer: whether optimizer state has a place in
    it. published_names: whether tensors are stored by published names, which the model's config translates; else by
    module names. load_universal: the setting of DeepSpeed's engine that loads it."""

    name: ClassVar[str]
    title: ClassVar[str]
    keys: ClassVar[tuple[str, ...]] = ()
    holds_optimizer: ClassVar[bool] = True
    published_names: ClassVar[bool] = False
    load_universal: ClassVar[bool] = False

    @abstractmethod
    def detect(self, folder: Path) -> bool:
        """Whether `folder` is a tag folder in this layout."""

    @abstractmethod
    def read(self, folder: Path) -> State:
        """The state in a tag folder, in the names of its files. Raises UserError."""

    @abstractmethod
    def files(self, state: State, folder: Path, target: CheckpointLayout) -> list[OutputFile]:
        """The files of `state` (in the names that this layout stores) below `folder`. Raises UserError."""

    @abstractmethod
    def bytes_on_disk(self, parameters: int, kept: int, target: CheckpointLayout) -> int:
        """The size of a model of that many parameters of which the optimizer keeps so many numbers, headers aside."""

    def writers(self, parameters: int, target: CheckpointLayout, workers: int) -> int:
        """How many of the `workers` have something to write at the same time."""
        return workers

    def facts(self, folder: Path) -> dict[str, Any]:
        """The values of its keys, as far as the files of a folder say."""
        return {}

    def words(self, facts: Mapping[str, Any]) -> str:
        """The layout in words. facts: the values of its keys."""
        return self.title

    def require_structure(self, folder: Path, state: State) -> None:
        """Raises UserError for files of a folder without a manifest that contradict each other."""
        return

    def engine_loads(self, stored: CheckpointLayout, engine: CheckpointLayout, optimizer: OptimizerSpec) -> bool:
        """Whether an engine that trains with `optimizer`, and whose own layout is `engine`, can go on from a checkpoint
        that is `stored` in this layout."""
        return False

    def remarks(self, state: State) -> list[str]:
        """What a reader of `state` in this layout must know."""
        return []

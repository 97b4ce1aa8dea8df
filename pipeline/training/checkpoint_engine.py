"""The part of DeepSpeed that writes and reads files, replaced where it writes: DeepSpeed still decides what each file
holds, and this says when it is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

Take = Callable[[Path, Any], None]
"""Gets the path and the content of a file."""


class TakingCheckpointEngine(CheckpointEngine):  # type: ignore[misc]
    """Hands every file that DeepSpeed wants to write to `take`; reading is left to DeepSpeed's own."""

    def __init__(self, own: CheckpointEngine, take: Take):
        super().__init__()
        self.name, self.own, self.take = type(self).__name__, own, take

    def create(self, info: CheckpointCommitInfo) -> None:
        """Nothing is to be prepared."""

    def save(self, state_dict: Any, path: str) -> None:
        self.take(Path(path), state_dict)

    def load(self, path: str, map_location: Any = None) -> Any:
        return self.own.load(path, map_location=map_location)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """The files are not there yet; nobody reads `latest`, which DeepSpeed is told not to write."""
        return True

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        return bool(self.own.is_data_parallel_writer(dp_rank))

"""Whole runs some of whose samples are NaN, and what they record of it."""

import json
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from pipeline.training.samples import StepSamples
from tests.helpers.runs import tiny_run


@contextmanager
def poisoned(*data_steps: int, killed_at: int | None = None) -> Iterator[None]:
    """One of the last rank's samples of these steps is NaN. killed_at: the step at whose samples that rank is killed.
    Workers are forks, which take this over."""
    real = StepSamples.of

    def of(samples: StepSamples, data_step: int):
        batches = list(real(samples, data_step))
        if os.environ["RANK"] == "1" and data_step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ["RANK"] == "1" and data_step in data_steps:
            batches[-1].inputs["pixel_values"][0, 0, 0, 0] = math.nan
        return batches

    with mock.patch.object(StepSamples, "of", of):
        yield


def command(folder: Path, *overrides: str) -> tuple[list[str], Path]:
    folder.mkdir()
    return ["train", str(tiny_run(folder)), "--stage", "small", *overrides], folder / "run"


def events(run: Path) -> list[tuple]:
    lines = map(json.loads, (run / "small" / "events.jsonl").read_text().splitlines())
    return [(one["step"], one["problem"], one["action"], one["back_to"], one["data_step"]) for one in lines]

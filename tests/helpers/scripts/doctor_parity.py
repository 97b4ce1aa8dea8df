"""The doctor's parity, and the same where the last micro-batch of every step gets lost."""

from unittest import mock

import torch.distributed as dist

from pipeline.doctor.parity import parity
from pipeline.training.engine import Engine
from pipeline.training.process_group import join


def healthy(job: dict) -> list[str]:
    """The verdicts. job: precisions."""
    verdicts = [finding.verdict for finding in parity(join(), set(job["precisions"]))]
    dist.barrier()
    return verdicts


def losing(job: dict) -> list[str]:
    """As `healthy`."""
    step = Engine.step

    def lost(engine, batches, *arguments, **more):
        return step(engine, [*batches[:-1], batches[0]], *arguments, **more)

    with mock.patch.object(Engine, "step", lost):
        return healthy(job)

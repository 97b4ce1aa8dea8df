"""Training on images that are mixed in pairs: the same numbers with any workers, and on any number of ranks."""

import pytest

from tests.helpers.cli import lemon_here
from tests.helpers.runs import BATCH, copied, losses, same_losses

MIXED = ("data.mixup=0.8", "data.cutmix=1.0", "data.label_smoothing=0.1", "data.augment=deit")
SHORT = ("stages.small.schedule.horizon=12 steps", f"stages.small.micro_batch={BATCH // 2}")


def test_neither_workers_nor_ranks_change_what_a_step_sees(finished, tmp_path):
    pytest.importorskip("kornia")
    for name, others in (("two", ("data.workers=2",)), ("one", ("processes=1",))):
        (tmp_path / name).mkdir()
        lemon_here("train", copied(finished, tmp_path / name), "--stage", "small", *MIXED, *SHORT, *others)
    same_losses(tmp_path / "one", tmp_path / "two", "small")
    two, one, plain = (losses(each / "run", "small") for each in (tmp_path / "two", tmp_path / "one", finished))
    assert two[1] == one[1] and two[1] != plain[1], "the mean of the same micro-batches, to the bit"
    assert two[0] == plain[0], "evaluation is as it was"

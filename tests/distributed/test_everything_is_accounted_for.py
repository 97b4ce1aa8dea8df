"""What a plain engine restores from a resharded checkpoint is, to the bit, what the engine that saved it held: weights,
moments, buffers, frozen parameters, counters, the schedule, the loss scale, the script's own client state.

The engines tell it themselves, by DeepSpeed's own debugging calls; nothing of this project compares.
"""

from pathlib import Path

import pytest

from tests.helpers.cli import lemon
from tests.helpers.rotation import rotated
from tests.helpers.universal import convert
from tests.helpers.workers import WorkerPools

ACCOUNT = "tests.helpers.scripts.plain_everything:account"
CASES = [
    # source: stage, ranks, precision and more; target: stage (0: universal, into stage 2), ranks
    ((0, 1, {"frozen": False}), (2, 2)),
    ((1, 2, {}), (3, 1)),
    ((1, 1, {"bf16": True}), (2, 2)),
    ((2, 2, {"fp16": True}), (1, 1)),
    ((2, 1, {"fp16": True}), (3, 2)),
    ((2, 2, {"frozen": False, "optimizer": "sgd"}), (3, 1)),
    ((2, 2, {"optimizer": "plain sgd"}), (3, 1)),
    ((2, 2, {"frozen": False, "zero": {"round_robin_gradients": True}}), (3, 1)),
    ((3, 2, {}), (2, 1)),
    ((3, 2, {"bf16": True}), (3, 1)),
    ((3, 1, {"zero": {"sub_group_size": 0}}), (3, 2)),
    ((3, 2, {"zero": {"sub_group_size": 50}}), (3, 2)),
    ((3, 1, {"fp16": True}), (3, 2)),
    ((1, 2, {}), (0, 1)),
    ((3, 2, {"bf16": True}), (0, 2)),
    ((2, 1, {"fp16": True}), (0, 2)),
]
LOST_BY_UNIVERSAL = ("buffer", "frozen")
"""What DeepSpeed's universal loader leaves as the script made it."""
ROUND_ROBIN = {"round_robin_gradients": True}
"""DeepSpeed's calls read moments through mappings of another order then (0.19.8): they say nothing of the source."""


def place(path: Path) -> dict[str, str]:
    return {"dir": str(path.parent), "tag": path.name}


def supported(workers: WorkerPools, world: int, job: dict) -> None:
    if not workers.supports(world, **job):
        pytest.skip("DeepSpeed does not support this precision on this device")


@rotated(one_in=2, of=("source", "target"), alike=lambda source, target: source[0])
@pytest.mark.parametrize("source, target", CASES, ids=str)
def test_an_engine_restores_what_was_saved(tmp_path, workers, capsys, source, target):
    stage, world, job = source
    supported(workers, world, job)
    saved, out = tmp_path / "theirs" / "three", tmp_path / "ours" / "three"
    before = workers.run(ACCOUNT, {"stage": stage, "seed": 1, "steps": 3, "save": place(saved), **job}, world)
    to, ranks = target
    layout = ["--zero-stage", to, "--world-size", ranks] if to else ["--format", "universal"]
    code, _, err = lemon(capsys, "reshard", saved, "--out", out, *layout)
    assert code == 0, err
    again = {"stage": to or 2, "seed": 2, "load": place(out), "universal": not to, **job}
    after = workers.run(ACCOUNT, again, ranks)
    unsaid = "exp_avg" if job.get("zero") == ROUND_ROBIN else "nothing"
    differ = {key for key in before if before[key] != after.get(key) and not key.startswith(unsaid)}
    assert not {key for key in differ if to or not key.startswith(LOST_BY_UNIVERSAL)}, differ
    assert set(before) == set(after)


@pytest.mark.parametrize("stage", [2, 3])
def test_what_deepspeeds_converter_keeps_is_kept(tmp_path, workers, capsys, stage):
    """It writes folders for trained parameters alone: frozen ones and buffers lie in the file of the module, or, of
    stage 3, in those of the ranks."""
    saved, converted, out = (tmp_path / name / "three" for name in ("theirs", "converted", "ours"))
    before = workers.run(ACCOUNT, {"stage": stage, "seed": 1, "steps": 3, "save": place(saved)}, 2)
    convert(saved, converted)
    code, said, err = lemon(capsys, "reshard", converted, "--out", out, "--zero-stage", stage, "--world-size", 1)
    assert code == 0, err
    after = workers.run(ACCOUNT, {"stage": stage, "seed": 2, "load": place(out)}, 1)
    differ = {key for key in before if before[key] != after[key]}
    assert not differ and any(key.startswith("frozen") for key in before), (differ, said)

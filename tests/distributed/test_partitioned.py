"""A model that is built cut over the ranks trains as one that is built whole and cut by the engine, to the bit."""

import pytest

from tests.helpers.rotation import rotated

RESUME = "tests.helpers.scripts.engine_resume:resumed"
PEAK = "tests.helpers.scripts.engine_resume:peak"
LARGE = {"layers": 12, "hidden": 512, "heads": 8, "mlp": 2048}
"""150 MB in float32, the largest matrix 4 MB."""


def job(tmp_path, built: str, family: str, **fields) -> dict:
    folder = tmp_path / built
    folder.mkdir()
    stage = {"zero_stage": 3, **fields}
    return {"family": family, "stage": stage, "built": built, "saved": 2, "steps": 4, "folder": str(folder)}


@rotated(one_in=2, of="family")
@pytest.mark.parametrize(
    "family, fields", [("llama", {"precision": "bf16"}), ("vit", {"activation_checkpointing": True})]
)
def test_it_trains_and_is_resumed_as_one_that_was_whole(workers, tmp_path, family, fields):
    """An engine that goes on is built with zeros, and its losses are those of the one that was not interrupted."""
    whole = workers.run(RESUME, job(tmp_path, "whole", family, **fields), world=2)["whole"]
    for built in ("initialized", "filled", "overwritten"):
        told = workers.run(RESUME, job(tmp_path, built, family, **fields), world=2)
        assert told["whole"] == whole
        assert told["behind"] == whole[2:]
    assert len(set(whole)) == len(whole)


@pytest.mark.parametrize("built", ["initialized", "drawn"])
def test_no_process_ever_holds_the_whole_model(workers, built):
    """0.65 of its bytes: a rank's half, a module that is being made, and what the allocator keeps."""
    job = {"family": "bert", "sizes": LARGE, "stage": {"zero_stage": 3}}
    assert workers.run(PEAK, {**job, "built": built}, world=2) < 0.65
    assert workers.run(PEAK, {**job, "built": "whole"}, world=2) > 0.95

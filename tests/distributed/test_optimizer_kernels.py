"""The fused kernel of AdamW, and stages that were begun by another one."""

import itertools

import pytest

from tests.helpers.rotation import rotated

TASK = "tests.helpers.scripts.kernels:resumed"


@rotated(one_in=4, of="zero_stage")
@pytest.mark.parametrize("zero_stage, precision", [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32")])
def test_a_resume_is_bit_for_bit_by_the_kernel_that_the_stage_was_begun_by(workers, tmp_path, zero_stage, precision):
    """The checkpoint names the kernel that has written it, and torch would take that; the engine's own counts. Between
    kernels the last digits differ: a step of 1e-2 in weights of 1, each by an ulp of 6e-8, in bf16 by one of 8e-3."""
    fields = {"zero_stage": zero_stage, "precision": precision}
    near = {"fp32": 1e-5, "bf16": 3e-2}[precision]
    for begun, kernel in itertools.product(("fused", "default"), repeat=2):
        job = {"stage": fields, "folder": str(tmp_path / f"{begun}-{kernel}"), "begun": begun, "kernel": kernel}
        found = workers.run(TASK, job, world=2)
        assert found["fused"] == [True if kernel == "fused" else None] * 2
        if begun == kernel:
            assert found["resumed"] == found["uninterrupted"]
        else:
            assert found["resumed"] == pytest.approx(found["uninterrupted"], abs=near)

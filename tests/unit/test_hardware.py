"""Peaks as the data sheets give them, and a CPU's as measured; no MFU above 1."""

import pytest
import torch
import torch.distributed as dist

from pipeline.training import hardware
from pipeline.training.hardware import Peak, data_sheet, multiply_in, peak_of_all_ranks


@pytest.mark.parametrize(
    "name, bf16, tf32, fp32",
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 494e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12, 51e12),
        ("NVIDIA H200", 989e12, 494e12, 67e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12, 19.5e12),
        ("NVIDIA A10", 125e12, 62.5e12, 31.2e12),
        ("NVIDIA A10G", 70e12, 35e12, 35e12),
        ("NVIDIA L4", 121e12, 60e12, 30.3e12),
        ("NVIDIA L40", 181e12, 90.5e12, 90.5e12),
        ("NVIDIA L40S", 362e12, 183e12, 91.6e12),
        ("Tesla V100-SXM2-16GB", None, None, 15.7e12),
        ("Tesla V100-PCIE-16GB", None, None, 14e12),
        ("Tesla T4", None, None, 8.1e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None, None),
        ("NVIDIA GeForce GTX 1080", None, None, None),
        ("NVIDIA T400", None, None, None),
    ],
)
def test_data_sheets_are_found_by_whole_words(name, bf16, tf32, fp32):
    """Without TF32 fp32 products are the CUDA cores' under every setting."""
    assert (data_sheet(name, "bf16"), data_sheet(name, "fp32")) == (bf16, fp32)
    assert data_sheet(name, "fp32", "high") == data_sheet(name, "fp32", "medium") == (tf32 or fp32)
    assert {data_sheet(name, precision, "high") for precision in ("bf16", "bf16-autocast", "fp16")} == {bf16}


def test_products_are_made_of_what_is_said():
    before = torch.get_float32_matmul_precision()
    try:
        for products in ("medium", "high", "highest"):
            multiply_in(products)
            assert torch.get_float32_matmul_precision() == products
            assert torch.backends.cudnn.allow_tf32 is (products != "highest")
    finally:
        multiply_in(before)


def test_no_utilization_above_one():
    peak = Peak(100.0)
    assert [peak.utilization(rate) for rate in (50.0, 112.0, 56.0)] == [0.5, 1.0, 0.5]
    assert peak.flops == 112.0
    assert Peak(None).utilization(5.0) is None


def test_a_cpu_is_measured_without_drawing_random_numbers(tmp_path, monkeypatch):
    """1e8: a matrix product of any CPU is faster; 1e14: of none."""
    monkeypatch.setattr(hardware, "FEWEST", 1)  # bf16 takes seconds where it is emulated
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        before = torch.get_rng_state()
        peaks = [peak_of_all_ranks("cpu", precision) for precision in ("fp32", "bf16", "fp16")]
        assert torch.equal(torch.get_rng_state(), before)
    finally:
        dist.destroy_process_group()
    assert all(1e8 < peak.flops < 1e14 for peak in peaks)

"""Peaks as the data sheets give them, and a CPU's as measured; no MFU above 1."""

import pytest
import torch
import torch.distributed as dist

from pipeline.training import hardware
from pipeline.training.hardware import Peak, data_sheet, peak_of_all_ranks


@pytest.mark.parametrize(
    "name, bf16, fp32",
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 494e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA H200", 989e12, 494e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12),
        ("NVIDIA A10", 125e12, 62.5e12),
        ("NVIDIA A10G", 70e12, 35e12),
        ("NVIDIA L4", 121e12, 60e12),
        ("NVIDIA L40", 181e12, 90.5e12),
        ("NVIDIA L40S", 362e12, 183e12),
        ("Tesla V100-SXM2-16GB", None, 15.7e12),
        ("Tesla V100-PCIE-16GB", None, 14e12),
        ("Tesla T4", None, 8.1e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None),
        ("NVIDIA GeForce GTX 1080", None, None),
        ("NVIDIA T400", None, None),
    ],
)
def test_data_sheets_are_found_by_whole_words(name, bf16, fp32):
    assert (data_sheet(name, "bf16"), data_sheet(name, "fp32")) == (bf16, fp32)


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
        peaks = [peak_of_all_ranks("cpu", precision) for precision in ("fp32", "bf16")]
        assert torch.equal(torch.get_rng_state(), before)
    finally:
        dist.destroy_process_group()
    assert all(1e8 < peak.flops < 1e14 for peak in peaks)

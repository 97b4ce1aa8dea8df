"""What a device can do: peak FLOP/s for the MFU."""

import functools
import os
import time

import torch

PEAKS = {  # dense bf16 FLOP/s, from NVIDIA's data sheets
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "H800": 989e12, "GH200": 989e12, "B200": 2250e12,
    "A100": 312e12, "A800": 312e12, "L40S": 362e12, "L4": 121e12, "A10G": 70e12, "A10": 125e12, "V100": 125e12, "T4": 65e12,
}


def settle() -> None:
    """Tell DeepSpeed which accelerator to take before it is imported; on a machine without GPUs it would guess aloud."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


@functools.cache
def peak_flops(device: str, precision: str) -> float | None:
    """Peak FLOP/s of this process's device; None when it is unknown.

    GPUs: the data sheet's dense bf16 figure (fp32 runs in TF32 at half of it). CPUs have no such figure that holds:
    the rate of a large matrix product with this process's threads is measured, once.
    """
    if device == "cuda":
        name = torch.cuda.get_device_name()
        peak = next((value for key, value in PEAKS.items() if key in name), None)
        return peak and (peak if precision == "bf16" else peak / 2)
    return _measured_gemm(torch.bfloat16 if precision == "bf16" else torch.float32)


def _measured_gemm(dtype: torch.dtype, size: int = 768, repeats: int = 4) -> float:
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    a @ b
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def describe(device: str) -> str:
    """The device in words, for the report."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s) per rank"

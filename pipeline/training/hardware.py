"""What the devices can do: peak FLOP/s for the MFU (model FLOPs utilization)."""

import re
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipeline.config.number_formats import BY_DEFAULT, MatmulPrecision
from pipeline.training.precisions import PRODUCTS

DATA_SHEETS: dict[str, tuple[float | None, float | None, float]] = {
    "B200": (2250e12, 1125e12, 75e12),
    "GH200": (989e12, 494e12, 67e12),
    "H200": (989e12, 494e12, 67e12),
    "H200 NVL": (835e12, 418e12, 60e12),
    "H100": (989e12, 494e12, 67e12),
    "H100 PCIE": (756e12, 378e12, 51e12),
    "H100 NVL": (835e12, 418e12, 60e12),
    "H800": (989e12, 494e12, 67e12),
    "H800 PCIE": (756e12, 378e12, 51e12),
    "A100": (312e12, 156e12, 19.5e12),
    "A800": (312e12, 156e12, 19.5e12),
    "A40": (149.7e12, 74.8e12, 37.4e12),
    "A30": (165e12, 82e12, 10.3e12),
    "A10": (125e12, 62.5e12, 31.2e12),
    "A10G": (70e12, 35e12, 35e12),
    "L40S": (362e12, 183e12, 91.6e12),
    "L40": (181e12, 90.5e12, 90.5e12),
    "L4": (121e12, 60e12, 30.3e12),
    "V100": (None, None, 15.7e12),
    "V100 PCIE": (None, None, 14e12),
    "V100S": (None, None, 16.4e12),
    "T4": (None, None, 8.1e12),
}
"""FLOP/s of dense products in 16 bits, TF32, fp32, by the words of the device's name; from NVIDIA's data sheets, whose
figures "with sparsity" are twice those of bf16 and TF32. fp32 is the CUDA cores'. The tensor cores of V100 and T4 know
fp16 alone: there is no TF32, and bf16 is emulated, for which there is no figure."""

SECONDS, FEWEST = 1.0, 5
"""A CPU's peak is the best of the products that fit into so many seconds, and of no fewer than so many products."""


@dataclass
class Peak:
    """FLOP/s that the devices of all ranks can do together; None: unknown."""

    flops: float | None

    def utilization(self, rate: float) -> float | None:
        """The MFU of `rate` FLOP/s, at most 1. A rate above the peak shows that the peak was taken too low: whatever
        has been reached once is possible, so from then on it is the peak."""
        if self.flops is None:
            return None
        self.flops = max(self.flops, rate)
        return rate / self.flops


def multiply_in(products: MatmulPrecision) -> None:
    """What float32 matrix products of this process are made of from here on, and its GPU's convolutions."""
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = products != BY_DEFAULT


def peak_of_all_ranks(device: str, precision: str, products: MatmulPrecision = BY_DEFAULT) -> Peak:
    """To be called by all ranks at once, before they train, and behind `multiply_in`.

    GPUs: the sum of the data sheets' figures. CPUs have no such figure that holds: the rate of large matrix products
    with each process's threads is measured, while all ranks do the same, since they share caches, memory and clock.
    """
    own = data_sheet(torch.cuda.get_device_name(), precision, products) if device == "cuda" else _measured(precision)
    both = torch.tensor([own or 0.0, float(own is None)], dtype=torch.float64, device=device)
    dist.all_reduce(both)
    total, unknown = both.tolist()
    return Peak(None if unknown else total)


def data_sheet(name: str, precision: str, products: MatmulPrecision = BY_DEFAULT) -> float | None:
    """The peak of the GPU called `name`, such as 'NVIDIA A100-SXM4-80GB'; None when it is not known. The entry with the
    most words counts; a slice of a GPU (MIG) has no figure."""
    words = set(re.split(r"[\s-]+", name.upper()))
    fitting = [entry for entry in DATA_SHEETS if words.issuperset(entry.split())]
    if not fitting or "MIG" in words:
        return None
    bf16, tf32, fp32 = DATA_SHEETS[max(fitting, key=lambda entry: len(entry.split()))]
    if precision != "fp32":
        return bf16
    return fp32 if products == BY_DEFAULT or tf32 is None else tf32


def _measured(precision: str, size: int = 1024) -> float:
    """Best FLOP/s of a (size, size) product with this process's threads, all ranks at the same time.

    All go on for the same time, so that none measures while another has already stopped; the best, since whatever else
    the machine does makes a product slower, never faster.
    """
    dtype = PRODUCTS[precision]
    a, b = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    a @ b
    dist.barrier()
    best, count, begun = float("inf"), 0, time.perf_counter()
    while (start := time.perf_counter()) - begun < SECONDS or count < FEWEST:
        a @ b
        best, count = min(best, time.perf_counter() - start), count + 1
    return 2 * size**3 / best


def describe(device: str) -> str:
    """The device's name, for the report."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s) per rank"

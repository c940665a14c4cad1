"""How many operations a second a device can do at best: the yardstick of utilisation (MFU) and of planned times."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """``memory``: GiB that programs see. Peaks of dense matrix products in TFLOP/s, 2 operations per multiply-add, accumulated in fp32:
    ``bf16`` on tensor cores (None = the chip has none for bf16), ``tf32`` on tensor cores, ``fp32`` outside them.
    ``pattern``: what the driver calls it.
    """

    title: str
    memory: float
    bf16: float | None
    tf32: float | None
    fp32: float
    pattern: str


GPUS: dict[str, Gpu] = {
    "a10": Gpu("A10", 22.0, 125, 62.5, 31.2, r"\bA10$"),
    "a100-40": Gpu("A100 40 GB", 39.4, 312, 156, 19.5, r"\bA100\b.*40GB"),
    "a100-80": Gpu("A100 80 GB", 79.1, 312, 156, 19.5, r"\bA100\b.*80GB"),
    "b200": Gpu("B200", 178.0, 2250, 1100, 80, r"\bB200$"),
    "h100": Gpu("H100 SXM", 79.1, 989, 494, 67, r"\bH100 80GB HBM3$|\bH100 SXM"),
    "h100-pcie": Gpu("H100 PCIe", 79.1, 756, 378, 51, r"\bH100 PCIe$"),
    "h200": Gpu("H200 SXM", 139.8, 989, 494, 67, r"\bH200$"),
    "l4": Gpu("L4", 22.0, 121, 60.5, 30.3, r"\bL4$"),
    "l40s": Gpu("L40S", 44.4, 362, 183, 91.6, r"\bL40S$"),
    "rtx3090": Gpu("RTX 3090", 23.6, 71, 35.6, 35.6, r"\bRTX 3090$"),
    "rtx4090": Gpu("RTX 4090", 23.5, 165.2, 82.6, 82.6, r"\bRTX 4090$"),
    "rtx5090": Gpu("RTX 5090", 31.4, 209.5, 104.8, 104.8, r"\bRTX 5090$"),
    "t4": Gpu("T4", 14.6, None, None, 8.1, r"\bT4$"),
    "v100-16": Gpu("V100 SXM 16 GB", 15.8, None, None, 15.7, r"\bV100-SXM2-16GB$"),
    "v100-32": Gpu("V100 SXM 32 GB", 31.7, None, None, 15.7, r"\bV100-SXM[23]-32GB"),
}
"""From the makers' data sheets, figures without sparsity. GeForce cards: bf16 with accumulation in fp32, half of the rate with fp16."""


def peak_of(gpu: Gpu, precision: str) -> tuple[str, float] | None:
    """Name and peak in FLOP/s of a known GPU at "bf16" or "fp32"; None where it has no tensor cores for bf16.

    fp32 products run on tensor cores (TF32) only where torch was told so (``torch.set_float32_matmul_precision``).
    """
    if precision == "bf16":
        return None if gpu.bf16 is None else (f"{gpu.title} bf16", gpu.bf16 * 1e12)
    if gpu.tf32 is not None and torch.get_float32_matmul_precision() != "highest":
        return f"{gpu.title} TF32", gpu.tf32 * 1e12
    return f"{gpu.title} fp32", gpu.fp32 * 1e12


def known_gpu(name: str) -> Gpu | None:
    """A GPU by the name that its driver gives, such as "NVIDIA A100-SXM4-80GB"; None for one that is not in the list."""
    return next((gpu for gpu in GPUS.values() if re.search(gpu.pattern, name)), None)


def peak_flops(device: torch.device, precision: str) -> tuple[str, float] | None:
    """Name and dense peak in FLOP/s (2 per multiply-add) of a device at "fp32" or "bf16"; None where it is not known.

    A GPU is looked up; a CPU is measured, in about a tenth of a second, with the threads that torch uses.
    """
    if device.type == "cuda":
        gpu = known_gpu(torch.cuda.get_device_name(device))
        return None if gpu is None else peak_of(gpu, precision)
    if device.type != "cpu":
        return None
    threads = torch.get_num_threads()
    rate = _measured_cpu(torch.bfloat16 if precision == "bf16" else torch.float32)
    return f"CPU, {threads} thread{'s' * (threads > 1)}, {precision}, measured", rate


def _measured_cpu(dtype: torch.dtype, *, n: int = 512, seconds: float = 0.1) -> float:
    """The best of many products of square matrices: other programs can only make it slower."""
    a = torch.full((n, n), 0.5, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    with torch.inference_mode():
        out = a @ a
        while True:
            began = time.perf_counter()
            torch.mm(a, a, out=out)
            now = time.perf_counter()
            best = min(best, now - began)
            if now >= end:
                return 2 * n**3 / best

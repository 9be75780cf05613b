"""What this machine can do at most, measured: the roofs that a model's components are held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
import torch.nn.functional as F

from tasks.ml import machine
from tasks.ml.xray.cost_model import Roofline

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Machine:
    """What this machine was measured to do at most."""

    name: str
    device: str
    peak_flops_per_s: dict[str, float]
    """Best matrix product, by precision."""
    bytes_per_s: float
    """Copy of a tensor larger than any cache: bytes read and written."""
    cache_bytes_per_s: float
    """Copy of one megabyte, which stays in a cache."""

    def roof(self, precision: str) -> Roofline:
        return Roofline(self.peak_flops_per_s[precision], self.bytes_per_s)

    def better(self, other: Machine) -> Machine:
        """The higher of two measurements of each roof: what slows a machine for a while does not lower its roof."""
        peaks = {name: max(peak, other.peak_flops_per_s[name]) for name, peak in self.peak_flops_per_s.items()}
        return replace(
            self, peak_flops_per_s=peaks, bytes_per_s=max(self.bytes_per_s, other.bytes_per_s),
            cache_bytes_per_s=max(self.cache_bytes_per_s, other.cache_bytes_per_s),
        )  # fmt: skip


def best_seconds(call: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Shortest of repeated calls within the time given, after one to warm up."""
    best, deadline = float("inf"), time.perf_counter() + seconds
    call()
    while best == float("inf") or time.perf_counter() < deadline:
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_bytes(device: torch.device) -> int:
    """Memory that a model may still take."""
    return int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)


@torch.inference_mode()
def measure(device: torch.device, *, seconds: float) -> Machine:
    """Measures the roofs: matrix products in each precision, and copies, for ``seconds`` each.

    The numbers multiplied come from a generator of their own.
    """
    cuda = device.type == "cuda"
    generator = torch.Generator(device).manual_seed(0)
    peaks = dict.fromkeys(DTYPES, 0.0)
    for size in (4096, 8192) if cuda else (1024, 2048):
        numbers = torch.rand(size, size, generator=generator, device=device)
        for precision, dtype in DTYPES.items():
            matrix = numbers.to(dtype)
            best = best_seconds(lambda matrix=matrix: F.linear(matrix, matrix), device, seconds / 2)  # type: ignore[misc]
            peaks[precision] = max(peaks[precision], 2 * size**3 / best)

    def copied(num_bytes: int) -> float:
        source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        target = torch.ones_like(source)
        return 2 * num_bytes / best_seconds(lambda: target.copy_(source), device, seconds)

    name = torch.cuda.get_device_name(device) if cuda else machine.description()
    large = min(512 << 20, free_bytes(device) // 8)
    return Machine(name, device.type, peaks, bytes_per_s=copied(large), cache_bytes_per_s=copied(1 << 20))

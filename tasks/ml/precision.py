"""Which precision the hardware favours: measured, because a CPU flag says that bf16 exists, not that it is fast."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

MATMUL = (768, 768, 768)
WORTHWHILE = 1.15
"""bf16 must be this many times faster to pay for its casts."""


@dataclass(frozen=True)
class Choice:
    """A precision and the sentence that explains it."""

    autocast: torch.dtype | None
    """Data type for autocast; ``None`` for plain fp32."""
    reason: str


def _gflops(dtype: torch.dtype, seconds: float = 0.1) -> float:
    """Matrix multiplication rate on the CPU in GFLOP/s: the best of repeated products within the time given."""
    rows, inner, columns = MATMUL
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    best = float("inf")
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        torch.nn.functional.linear(left, right)
        best = min(best, time.perf_counter() - started)
    return 2 * rows * inner * columns / best / 1e9


def choose(precision: str, device: torch.device) -> Choice:
    """Resolves ``auto``, ``fp32`` or ``bf16`` for a device.

    Micikevicius et al. 2018 (arXiv:1710.03740) for mixed precision: master weights stay fp32, and bf16 keeps fp32's
    exponent range, so no loss scaling is needed (Kalamkar et al. 2019, arXiv:1905.12322).
    """
    if precision == "fp32":
        return Choice(None, "fp32 (as asked)")
    if precision == "bf16":
        return Choice(torch.bfloat16, "bf16 autocast (as asked)")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice(torch.bfloat16, f"bf16 autocast ({torch.cuda.get_device_name(device)} has it natively)")
        return Choice(None, f"fp32 ({torch.cuda.get_device_name(device)} has no native bf16)")
    fp32, bf16 = _gflops(torch.float32), _gflops(torch.bfloat16)
    rates = f"measured {bf16:.0f} GFLOP/s in bf16, {fp32:.0f} in fp32"
    if bf16 > WORTHWHILE * fp32:
        return Choice(torch.bfloat16, f"bf16 autocast ({rates})")
    return Choice(None, f"fp32 ({rates})")

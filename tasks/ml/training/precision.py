"""Which precision the hardware favours: measured, because a CPU flag says that bf16 exists, not that it is fast."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.parallel import world
from tasks.ml.xray.roofline import best_seconds

SIDE = {"cpu": 768, "cuda": 4096}
"""Rows and columns of the square product that is timed: large enough for the peak, small enough for a moment."""
WORTHWHILE = 1.15
"""A smaller type must be this many times faster to pay for its casts."""


@dataclass(frozen=True)
class Choice:
    """A precision and the sentence that explains it."""

    autocast: torch.dtype | None
    """Data type for autocast; ``None`` for plain fp32."""
    reason: str
    scaled: bool = False
    """Whether the loss is scaled, because gradients would vanish in the type's range."""
    tf32: bool = False
    """Whether fp32 products may round their operands to 10 bits of mantissa."""
    float8: bool = False
    """Whether linear layers round their operands to 8 bits."""

    @property
    def matmul_dtype(self) -> torch.dtype:
        """What most products are computed in."""
        return torch.float8_e4m3fn if self.float8 else self.autocast or torch.float32

    def to_json(self) -> dict[str, Any]:
        """The choice in types that JSON has."""
        return asdict(self) | {"autocast": str(self.autocast).removeprefix("torch.") if self.autocast else None}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Choice:
        """The choice that ``to_json`` wrote."""
        return cls(**{**said, "autocast": getattr(torch, said["autocast"]) if said["autocast"] else None})


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left · rightᵀ; of fp8, scaled by one and rounded to bf16."""
    if left.dtype != torch.float8_e4m3fn:
        return torch.nn.functional.linear(left, right)
    one = torch.ones((), device=left.device)
    return torch._scaled_mm(left, right.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


@functools.cache
def matmul_rate(device_type: str, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """Measured peak of matrix products in FLOP/s: the best of repeated square products within the time given.

    Measured once in a process. It draws from a generator of its own, so that whoever measures changes no other number.
    """
    device = torch.device(device_type)
    side = SIDE.get(device.type, SIDE["cpu"])
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    return 2 * side**3 / best_seconds(lambda: _product(left, right), device, seconds)


def _tf32(device: torch.device) -> Choice:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise FeatherweightError(f"precision: tf32 needs an NVIDIA GPU of Ampere or later, and this is {_name(device)}")
    return Choice(None, "tf32 products (as asked)", tf32=True)


def _fp8(device: torch.device) -> Choice:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise FeatherweightError(
            "precision: fp8 needs an NVIDIA GPU of compute capability 8.9 (Ada) or later, and this is "
            f"{_name(device)}; choose auto"
        )
    return Choice(torch.bfloat16, "fp8 products in linear layers, bf16 autocast around them (as asked)", float8=True)


def _auto(device: torch.device) -> Choice:
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice(torch.bfloat16, f"bf16 autocast ({_name(device)} has it natively)", tf32=True)
        if torch.cuda.get_device_capability(device) >= (7, 0):
            return Choice(torch.float16, f"fp16 autocast with loss scaling ({_name(device)} has no bf16)", scaled=True)
        return Choice(None, f"fp32 ({_name(device)} has no tensor cores)")
    fp32, bf16 = (matmul_rate(device.type, dtype) for dtype in (torch.float32, torch.bfloat16))
    rates = f"measured {bf16 / 1e9:.0f} GFLOP/s in bf16, {fp32 / 1e9:.0f} in fp32"
    if bf16 > WORTHWHILE * fp32:
        return Choice(torch.bfloat16, f"bf16 autocast ({rates})")
    return Choice(None, f"fp32 ({rates})")


PRECISIONS: dict[str, Callable[[torch.device], Choice]] = {
    "auto": _auto,
    "fp32": lambda _: Choice(None, "fp32 (as asked)"),
    "tf32": _tf32,
    "bf16": lambda _: Choice(torch.bfloat16, "bf16 autocast (as asked)"),
    "fp16": lambda _: Choice(torch.float16, "fp16 autocast with loss scaling (as asked)", scaled=True),
    "fp8": _fp8,
}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"a {device.type.upper()}"


def choose(precision: str, device: torch.device) -> Choice:
    """Resolves one of ``PRECISIONS`` for a device. ``auto`` never chooses fp8: nobody has measured it to be faster.

    Micikevicius et al. 2018 (arXiv:1710.03740) for mixed precision: master weights stay fp32, and fp16 needs the loss
    scaled; bf16 keeps fp32's exponent range and does not (Kalamkar et al. 2019, arXiv:1905.12322).

    Raises:
        FeatherweightError: the device cannot do it.
    """
    return PRECISIONS[precision](device)


FILE = "precision.json"


def of_run(name: str, device: torch.device, directory: Path | None) -> Choice:
    """What a run computes in: what it chose at its start, if that is in the directory, whatever would be measured now;
    the same in all processes, which must all ask.

    Args:
        name: one of ``PRECISIONS``.
        directory: where the choice is kept, if it is.

    Raises:
        FeatherweightError: the device cannot do it.
    """
    chosen = _kept(directory / FILE) if directory else None
    if chosen is None:
        chosen = choose(name, device)
        if directory and world.rank() == 0:
            directory.mkdir(parents=True, exist_ok=True)
            temporary = directory / f"{FILE}.tmp"
            temporary.write_text(json.dumps(chosen.to_json()), encoding="utf-8")
            temporary.replace(directory / FILE)
    return world.first(chosen)


def _kept(path: Path) -> Choice | None:
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or damaged
        return Choice.from_json(json.loads(path.read_text(encoding="utf-8")))
    return None


def length_multiple(choice: Choice, device: torch.device) -> int:
    """Tokens that lengths of batches are best a multiple of.

    oneDNN, which multiplies bf16 on a CPU, compiles each product anew for each shape and keeps what it compiled: about
    0.7 MB, and half a millisecond, a product.
    """
    return 4 if device.type == "cpu" and choice.autocast is torch.bfloat16 else 1


@contextmanager
def autocast(choice: Choice, device: torch.device) -> Iterator[None]:
    """Runs a forward pass in the chosen precision."""
    with torch.autocast(device.type, choice.autocast or torch.bfloat16, enabled=choice.autocast is not None):
        yield


@contextmanager
def rounded(model: nn.Module, choice: Choice) -> Iterator[None]:
    """Has the linear layers of a model that does not learn hold what autocast would round anew in each pass."""
    linears = [module for module in model.modules() if type(module) is nn.Linear and choice.autocast is not None]
    whole = [(parameter, parameter.data) for linear in linears for parameter in linear.parameters()]
    try:
        for parameter, data in whole:
            parameter.data = data.to(choice.autocast)
        yield
    finally:
        for parameter, data in whole:
            parameter.data = data


@contextmanager
def products(choice: Choice) -> Iterator[None]:
    """Lets fp32 products on a GPU round to TF32 while it is open, if that was chosen."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if choice.tf32 else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

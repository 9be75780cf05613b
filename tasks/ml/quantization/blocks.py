"""Weights in blocks as ``MatMulNBits`` has them: codes of 2, 4 or 8 bits, a scale and a zero point for each block.

A weight is (code − zero point) · scale. Blocks are runs of a row. O = outputs, I = inputs, G = blocks of a row,
B = columns of a block, so that G · B ≥ I; what is beyond I is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from tasks.contracts.base import FeatherweightError

BITS = (2, 4, 8)
"""Of a code; the runtime's CPU kernels have no others."""
BLOCK_SIZES = (16, 32, 64, 128, 256)
IN_FLOATS = {(2, 16), (2, 256)}
"""Bits and block sizes whose kernels take their input as it is, whatever is asked of them."""
HEAD = "head"
"""Name of the blocks of the logits' weight, which is the token table, too, where the two are tied."""
TABLE = "table"
"""Of the token table, where it is one of its own."""
TINY = 1e-12
INSIDE = 0.49
"""Steps from a code's value that a weight may be off without getting another."""
SHRINKS = 24
"""Ranges that ``searched`` tries, from the whole one down."""
NARROWEST = 0.6
"""Of the whole range, the least that is tried with 4 bits; the square of it with 2."""
REFITS = 3


@dataclass(frozen=True)
class Format:
    """How the blocks of a weight are stored.

    Attributes:
        bits: of a code.
        block_size: columns that share a scale.
        symmetric: whether the zero point is half of all codes, and not stored.
        exact_inputs: whether the product takes its input as it is, and not in int8, block by block.

    Raises:
        FeatherweightError: the runtime has no kernel for it.
    """

    bits: int = 4
    block_size: int = 32
    symmetric: bool = False
    exact_inputs: bool = False

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.block_size not in BLOCK_SIZES:
            raise FeatherweightError(
                f"quantization: {self.bits} bits in blocks of {self.block_size} have no kernel; bits are "
                f"{', '.join(map(str, BITS))}, blocks {', '.join(map(str, BLOCK_SIZES))}"
            )

    @property
    def highest(self) -> int:
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        return 2 ** (self.bits - 1)

    @property
    def rounds_inputs(self) -> bool:
        """Whether the product multiplies integers: its input is rounded, too."""
        return not self.exact_inputs and (self.bits, self.block_size) not in IN_FLOATS

    @property
    def bits_per_weight(self) -> float:
        """With what a block's scale, fp32, and zero point add."""
        return self.bits + (32 + (0 if self.symmetric else self.bits)) / self.block_size


@dataclass(frozen=True)
class Blocks:
    """A weight (O, I) in blocks."""

    format: Format
    inputs: int
    codes: torch.Tensor
    """uint8 (O, G, B)."""
    scales: torch.Tensor
    """fp32 (O, G)."""
    zeros: torch.Tensor
    """uint8 (O, G)."""

    def dense(self) -> torch.Tensor:
        """The weight that the codes stand for, fp32 (O, I)."""
        steps = self.codes.float() - self.zeros.float().unsqueeze(-1)
        return (steps * self.scales.unsqueeze(-1)).flatten(1)[:, : self.inputs]

    def recoded(self, weight: torch.Tensor) -> Blocks:
        """A weight (O, I) by the nearest codes of the same scales and zero points."""
        codes = encode(split(weight, self.format.block_size), self.scales, self.zeros.float(), self.format)
        return replace(self, codes=codes.to(torch.uint8))

    def nearby(self, weight: torch.Tensor) -> torch.Tensor:
        """What is nearest to a weight (O, I) among all that has these codes."""
        steps = self.codes.float() - self.zeros.float().unsqueeze(-1)
        wanted = split(weight, self.format.block_size) / self.scales.unsqueeze(-1)
        within = wanted.clamp(steps - INSIDE, steps + INSIDE) * self.scales.unsqueeze(-1)
        return within.flatten(1)[:, : self.inputs]

    def to(self, device: torch.device) -> Blocks:
        """The same on a device."""
        return replace(self, codes=self.codes.to(device), scales=self.scales.to(device), zeros=self.zeros.to(device))

    def packed_codes(self) -> torch.Tensor:
        """Codes as the operator reads them, the first in the lowest bits: uint8 (O, G, B · bits / 8)."""
        return _pack(self.codes, self.format.bits)

    def packed_zeros(self) -> torch.Tensor:
        """Zero points as the operator reads them: uint8 (O, ⌈G · bits / 8⌉)."""
        return _pack(F.pad(self.zeros, (0, -self.zeros.shape[1] % (8 // self.format.bits))), self.format.bits)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points in a file."""
        zeros = 0 if self.format.symmetric else self.packed_zeros().numel()
        return self.codes.numel() * self.format.bits // 8 + 4 * self.scales.numel() + zeros

    def rows(self, start: int, end: int) -> Blocks:
        """Some of the outputs."""
        return Blocks(self.format, self.inputs, self.codes[start:end], self.scales[start:end], self.zeros[start:end])


def joined(parts: Sequence[Blocks]) -> Blocks:
    """Outputs of several weights on the same inputs, one after the other.

    Raises:
        ValueError: they are not in the same format.
    """
    first = parts[0]
    if any((part.format, part.inputs) != (first.format, first.inputs) for part in parts):
        raise ValueError(f"blocks of different formats: {', '.join(str(part.format) for part in parts)}")
    columns = (torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scales", "zeros"))
    return Blocks(first.format, first.inputs, *columns)


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    if bits == 8:
        return codes
    parts = codes.unflatten(-1, (-1, 8 // bits)).to(torch.int32)
    shifts = torch.arange(0, 8, bits, dtype=torch.int32)
    return (parts << shifts).sum(dim=-1).to(torch.uint8)


def split(weight: torch.Tensor, block_size: int) -> torch.Tensor:
    """A weight (O, I) in blocks, the last of each row filled up with zeros: (O, G, B)."""
    return F.pad(weight.float(), (0, -weight.shape[1] % block_size)).unflatten(1, (-1, block_size))


def encode(blocks: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, form: Format) -> torch.Tensor:
    """The nearest codes, as floats, of blocks (…, B) by scales and zero points (…)."""
    return (blocks / scales.unsqueeze(-1)).round().add(zeros.unsqueeze(-1)).clamp(0, form.highest)


def whole_range(blocks: torch.Tensor, form: Format, shrink: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points (…) with which the largest elements of blocks (…, B), times ``shrink``, keep their value.

    With a middle zero point it is the element of largest magnitude, which becomes code 0 (as in GGML's Q4_0); else
    both ends of the range, which holds zero.
    """
    if form.symmetric:
        largest = blocks.gather(-1, blocks.abs().argmax(dim=-1, keepdim=True)).squeeze(-1) * shrink
        scales = -largest / form.middle
        return _not_zero(scales), torch.full_like(scales, form.middle)
    low, high = (end * shrink for end in torch.aminmax(blocks, dim=-1))
    low, high = low.clamp_max(0), high.clamp_min(0)
    scales = _not_zero((high - low) / form.highest)
    return scales, (-low / scales).round().clamp(0, form.highest)


def _not_zero(scales: torch.Tensor) -> torch.Tensor:
    return torch.where(scales.abs() < TINY, torch.full_like(scales, TINY), scales)


def _error(
    blocks: torch.Tensor, weights: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, form: Format
) -> torch.Tensor:
    steps = encode(blocks, scales, zeros, form) - zeros.unsqueeze(-1)
    return (weights * (blocks - steps * scales.unsqueeze(-1)).square()).sum(dim=-1)


def searched(blocks: torch.Tensor, weights: torch.Tensor, form: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points (…) of least Σ weight · error² over each block (…, B): it clips what costs too much.

    Ranges from the whole one down are tried, and after each the scale that suits the codes best, in closed form; as
    llama.cpp's k-quants search (``make_qkx2_quants``), with whole zero points.

    Args:
        weights: what the squared error of each element counts, above zero, broadcast to the blocks.
    """
    weights = weights.expand_as(blocks)
    best_scales, best_zeros = whole_range(blocks, form)
    best = _error(blocks, weights, best_scales, best_zeros, form)
    narrowest = NARROWEST ** (4 / form.bits) if form.bits < 8 else 0.95
    for shrink in torch.linspace(1.0, narrowest, SHRINKS).tolist():
        scales, zeros = whole_range(blocks, form, shrink)
        for _ in range(REFITS):
            steps = encode(blocks, scales, zeros, form) - zeros.unsqueeze(-1)
            counted = weights * steps
            square, product = (counted * steps).sum(dim=-1), (counted * blocks).sum(dim=-1)
            scales = _not_zero(torch.where(square > 0, product / square.clamp_min(TINY), scales))
        error = _error(blocks, weights, scales, zeros, form)
        better = error < best
        best = torch.where(better, error, best)
        best_scales = torch.where(better, scales, best_scales)
        best_zeros = torch.where(better, zeros, best_zeros)
    return best_scales, best_zeros


def nearest(weight: torch.Tensor, form: Format) -> Blocks:
    """Rounds a weight (O, I) to nearest, by the whole range of each block."""
    blocks = split(weight, form.block_size)
    return _of(blocks, *whole_range(blocks, form), form, weight.shape[1])


def clipped(weight: torch.Tensor, form: Format, importance: torch.Tensor | None = None) -> Blocks:
    """Rounds a weight (O, I) to nearest, by the ``searched`` range of each block.

    Args:
        importance: what the squared error of each input counts (I,), such as its mean square; all the same without.
    """
    blocks = split(weight, form.block_size)
    counts = counted(torch.ones(weight.shape[1]) if importance is None else importance, form)
    return _of(blocks, *searched(blocks, counts, form), form, weight.shape[1])


def counted(importance: torch.Tensor, form: Format) -> torch.Tensor:
    """What the squared error of each input counts (I,), for ``searched``: in blocks (1, G, B), and never nothing."""
    known = importance.float()
    return split(known.clamp_min(known.mean() * 1e-4 + TINY).unsqueeze(0), form.block_size)


def _of(blocks: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, form: Format, inputs: int) -> Blocks:
    return Blocks(form, inputs, encode(blocks, scales, zeros, form).to(torch.uint8), scales, zeros.to(torch.uint8))

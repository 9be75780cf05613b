"""Simulated quantization: what a quantized model computes, in PyTorch, with the arithmetic of the integer runtime.

Symmetric per-channel int8 weights and per-tensor uint8 activations are Jacob et al. 2018 (arXiv:1712.05877, eq. 1:
real = scale · (q − zero point)) as ONNX ``DynamicQuantizeLinear``, ``QuantizeLinear`` and ``MatMulInteger`` compute it.
O = output channels, I = input channels, V = vocabulary, H = hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import nn

from tasks.ml.models import modeling
from tasks.ml.models.quantization_spec import FLOATS, INT4, INT8_DYNAMIC, INT8_STATIC, SPEC_FILE, LinearScheme, Spec
from tasks.ml.quantization import block_files
from tasks.ml.quantization.blocks import HEAD, TABLE, Blocks

INT8_MAX = 127
PAIR_MAX = 128
"""What the codes of two neighbouring inputs of an output may come to, of one sign.

Where a processor multiplies bytes in pairs (AVX2, and AVX-512 without VNNI), the runtime adds the products of two
neighbours in 16 bits, which saturate: with activations up to 255, 255 · 128 still fits.
"""
INT4_MAX = 7
UINT8_MAX = 255


def row_scale(rows: torch.Tensor) -> torch.Tensor:
    """Symmetric int8 scale of each row: (…, K) → (…, 1) = max |x| / 127."""
    return (rows.abs().amax(dim=-1, keepdim=True) / INT8_MAX).clamp_min(1e-12)


def quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes each row to int8: (…, K) → int8 (…, K) and scales (…, 1)."""
    scale = row_scale(rows)
    return (rows / scale).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scale


def in_pairs(weight: torch.Tensor) -> torch.Tensor:
    """Neighbouring inputs of a weight: (O, I) → (O, ⌈I / 2⌉, 2), a last one beside zero."""
    return F.pad(weight, (0, weight.shape[-1] % 2)).unflatten(-1, (-1, 2))


def pair_sums(pairs: torch.Tensor) -> torch.Tensor:
    """The larger of what the positive and the negative ones of each pair come to: (…, 2) → (…)."""
    return torch.maximum(pairs.clamp_min(0).sum(dim=-1), pairs.neg().clamp_min(0).sum(dim=-1))


def weight_scale(weight: torch.Tensor) -> torch.Tensor:
    """Symmetric int8 scale of each output of an integer product: (O, I) → (O, 1).

    The least with which no code is beyond 127 and no pair beyond ``PAIR_MAX``: in a transformer about a quarter more
    than max |w| / 127 alone.
    """
    together = pair_sums(in_pairs(weight)).amax(dim=-1, keepdim=True) / PAIR_MAX
    return torch.maximum(row_scale(weight), together)


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes the weight of an integer product: (O, I) → int8 (O, I) and scales (O, 1).

    Any processor multiplies such codes exactly. Quantizing what they stand for gives the same codes again: where the
    two of a pair were both rounded away from zero, to one more than ``PAIR_MAX``, the one that gained more gives way.
    """
    scale = weight_scale(weight)
    exact = in_pairs(weight / scale)
    codes = exact.round().clamp(-INT8_MAX, INT8_MAX)
    gained = (codes.abs() - exact.abs()).argmax(dim=-1, keepdim=True)
    excess = (pair_sums(codes) - PAIR_MAX).clamp_min(0).unsqueeze(-1)
    codes = codes.scatter_add(-1, gained, -excess * codes.sign().gather(-1, gained))
    return codes.flatten(-2)[..., : weight.shape[-1]].to(torch.int8), scale


def quantize_blocks(weight: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes blocks of each row to 4 bits: (R, K) → int8 in −8…7 (R, K) and scales (R, K / block_size).

    The element of largest magnitude maps to −8, so that the one extra negative level is used (as in GGML's Q4_0).
    """
    rows, columns = weight.shape
    blocks = weight.reshape(rows, columns // block_size, block_size)
    index = blocks.abs().argmax(dim=-1, keepdim=True)
    scale = blocks.gather(-1, index) / -(INT4_MAX + 1)
    scale = torch.where(scale.abs() < 1e-12, torch.full_like(scale, 1e-12), scale)
    codes = (blocks / scale).round().clamp(-(INT4_MAX + 1), INT4_MAX).to(torch.int8)
    return codes.reshape(rows, columns), scale.squeeze(-1)


def dequantize_blocks(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Inverse of ``quantize_blocks``: codes (R, K) and scales (R, K / block) → (R, K)."""
    rows, columns = codes.shape
    return (codes.reshape(rows, scale.shape[1], -1) * scale.unsqueeze(-1)).reshape(rows, columns)


def dynamic_uint8(x: torch.Tensor) -> torch.Tensor:
    """Quantizes and dequantizes a tensor as ONNX ``DynamicQuantizeLinear`` does: uint8, asymmetric, per tensor."""
    low, high = torch.aminmax(x)
    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    scale = ((high - low) / UINT8_MAX).clamp_min(1e-12)
    zero_point = (-low / scale).round().clamp(0, UINT8_MAX)
    return ((x / scale).round() + zero_point).clamp(0, UINT8_MAX).sub(zero_point).mul(scale)


def static_uint8(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """Quantizes and dequantizes a tensor as ONNX ``QuantizeLinear`` does with a scale and zero point that are given."""
    return ((x / scale).round() + zero_point).clamp(0, UINT8_MAX).sub(zero_point).mul(scale)


def int8_blocks(x: torch.Tensor, block_size: int) -> torch.Tensor:
    """Quantizes and dequantizes blocks of the last axis to symmetric int8, as ``MatMulNBits`` does with its input.

    ``accuracy_level`` 4 of the operator: integers are multiplied, each block of the input by its block of the weight.
    """
    blocks = F.pad(x, (0, -x.shape[-1] % block_size)).unflatten(-1, (-1, block_size))
    codes, scale = quantize_rows(blocks)
    return (codes * scale).flatten(-2)[..., : x.shape[-1]]


def input_on_grid(x: torch.Tensor, how: LinearScheme, block_size: int) -> torch.Tensor:
    """What the integer operator of a scheme sees of its input (…, I), smoothed already."""
    if how.scheme == INT8_DYNAMIC:
        return dynamic_uint8(x)
    if how.scheme == INT8_STATIC:
        return static_uint8(x, how.scale, how.zero_point)
    return int8_blocks(x, block_size)


def weight_on_grid(weight: torch.Tensor, how: LinearScheme, block_size: int) -> torch.Tensor:
    """What the integer operator of a scheme makes of a weight (O, I), smoothed already."""
    if how.scheme == INT4:
        columns = weight.shape[1]
        codes, scale = quantize_blocks(F.pad(weight, (0, -columns % block_size)), block_size)
        return dequantize_blocks(codes, scale)[:, :columns]
    codes, scale = quantize_weight(weight)
    return codes.float() * scale


def smoothed(weight: torch.Tensor, how: LinearScheme) -> torch.Tensor:
    """A weight (O, I) whose columns took over the scale of the input's channels."""
    return weight * weight.new_tensor(how.smoothing) if how.smoothing else weight


def divided(x: torch.Tensor, how: LinearScheme) -> torch.Tensor:
    """An input (…, I), or a ``smoothed`` weight (O, I), without the scale that its channels gave away or took over."""
    return x / x.new_tensor(how.smoothing) if how.smoothing else x


class SimulatedLinear(nn.Module):
    """What a quantized linear layer computes, in floating point.

    Sums of products of 8-bit integers are exact in fp32 up to 2^24, so for I ≤ 500 this equals the integer result and
    beyond that it differs by rounding of the sum only.
    """

    weight: torch.Tensor
    divisor: torch.Tensor | None

    def __init__(self, linear: nn.Linear, how: LinearScheme = LinearScheme(), block_size: int = 32) -> None:
        super().__init__()
        self.how, self.block_size = how, block_size
        weight = smoothed(linear.weight.detach(), how)
        self.register_buffer("weight", weight_on_grid(weight, how, block_size))
        self.register_buffer("divisor", weight.new_tensor(how.smoothing) if how.smoothing else None)
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    @property
    def packed(self) -> bool:
        """Whether two codes share a byte in the graph."""
        return self.how.scheme == INT4

    def dense(self) -> torch.Tensor:
        """The weight (O, I) that applies to the input as it is."""
        return self.weight if self.divisor is None else self.weight / self.divisor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.divisor is not None:
            x = x / self.divisor
        return F.linear(input_on_grid(x, self.how, self.block_size), self.weight, self.bias)


def simulate_table(weight: torch.Tensor, bits: int, block_size: int) -> torch.Tensor:
    """Rounds an embedding table (V, H) to what its quantized form would give back."""
    if bits == 8:
        codes, scale = quantize_rows(weight)
        return codes * scale
    return dequantize_blocks(*quantize_blocks(weight, block_size))


def simulate(model: nn.Module, spec: Spec, codes: Mapping[str, Blocks] = MappingProxyType({})) -> None:
    """Makes a model, in place, compute what the runtime will. Idempotent on weights that are already rounded.

    Args:
        spec: what is replaced by its simulation.
        codes: blocks by qualified name, ``HEAD`` and ``TABLE``, which its weights stand for already: their products get
            inputs as the runtime rounds them.
    """
    for name, blocks in codes.items():
        if name != TABLE and blocks.format.rounds_inputs:
            rounding = partial(_input_in_blocks, blocks.format.block_size)
            product(model, name).register_forward_pre_hook(rounding)
    for name, how in spec.linears.items():
        linear: nn.Linear = model.get_submodule(name)  # type: ignore[assignment]
        model.set_submodule(name, SimulatedLinear(linear, how, spec.block_size))
    for name, bits in spec.embeddings.items():
        table = model.get_submodule(name)
        with torch.no_grad():
            table.weight.copy_(simulate_table(table.weight, bits, spec.block_size))  # type: ignore[operator, arg-type]
    if spec.floats != "fp32":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.to(FLOATS[spec.floats]))


def product(model: nn.Module, name: str) -> nn.Module:
    """What computes a product in blocks, by its qualified name or ``HEAD``."""
    found: nn.Module = model.get_output_embeddings() if name == HEAD else model.get_submodule(name)  # type: ignore[operator]
    return found


def _input_in_blocks(block_size: int, _: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    return int8_blocks(inputs[0], block_size)


def load(directory: Path, problem: str) -> nn.Module:
    """Loads a torch bundle, in evaluation mode; one that is quantized as its simulation."""
    model, spec = modeling.load(directory, problem), Spec()
    if (directory / SPEC_FILE).is_file():
        spec = Spec.from_json((directory / SPEC_FILE).read_text(encoding="utf-8"))
    simulate(model, spec, block_files.load(directory))
    return model

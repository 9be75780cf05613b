"""Quantization: the plain-JSON spec, and its simulation in PyTorch with the arithmetic of the integer runtime.

Symmetric per-channel int8 weights and per-tensor dynamic uint8 activations are Jacob et al. 2018 (arXiv:1712.05877,
eq. 1: real = scale · (q − zero point)) as ONNX ``DynamicQuantizeLinear`` and ``MatMulInteger`` compute them.
O = output channels, I = input channels, V = vocabulary, H = hidden.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from tasks.contracts import FeatherweightError
from tasks.ml import families

SPEC_FILE = "quantization.json"
INT8_MAX = 127
INT4_MAX = 7


@dataclass(frozen=True)
class Spec:
    """What to quantize and how. Scales are not in it: they follow from the weights by ``weight_scale``.

    Attributes:
        linears: qualified names of the linear layers whose weight is int8 per output channel and whose input is
            quantized to uint8 at run time, per tensor.
        embeddings: qualified name of each embedding table → bits (8: one scale per row; 4: one per block of a row).
        block_size: columns that share a scale in 4-bit tables.
    """

    linears: tuple[str, ...] = ()
    embeddings: Mapping[str, int] = field(default_factory=dict)
    block_size: int = 32

    def to_json(self) -> str:
        return json.dumps({"format": 1, **asdict(self)}, indent=1, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Spec:
        values = json.loads(text)
        if values.pop("format") != 1:
            raise ValueError(f"{SPEC_FILE}: format must be 1")
        return Spec(linears=tuple(values["linears"]), embeddings=values["embeddings"], block_size=values["block_size"])


def plan(model: nn.Module, *, linears: bool, token_bits: int, block_size: int) -> Spec:
    """Writes the spec of a model: all linear layers of its backbone, its token and its position table.

    Args:
        token_bits: 8 or 4 for the token table, 32 to leave the tables alone. Positions are few, so they take 8 bits.

    Raises:
        FeatherweightError: the table's width is not a multiple of ``block_size``.
    """
    family = families.of(model.config.model_type)  # type: ignore[union-attr, arg-type]
    prefix = model.base_model_prefix
    width = family.token_embedding(model).embedding_dim
    if token_bits == 4 and width % block_size:
        raise FeatherweightError(f"quantization: block_size {block_size} does not divide the hidden size {width}")
    tables = {f"{prefix}.{family.embeddings}": token_bits, f"{prefix}.{family.position_embeddings}": 8}
    return Spec(
        linears=tuple(family.linears(model)) if linears else (),
        embeddings=tables if token_bits < 32 else {},
        block_size=block_size,
    )


def num_bytes(model: nn.Module, spec: Spec) -> int:
    """Bytes of the weights as the spec stores them: integer codes, fp32 scales, and fp32 for the rest."""
    total = 0
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        for parameter in module.parameters(recurse=False):
            rows, count = len(parameter), parameter.numel()
            if parameter is weight and name in spec.linears:
                total += count + 4 * rows
            elif parameter is weight and name in spec.embeddings:
                bits = spec.embeddings[name]
                total += count * bits // 8 + 4 * (rows if bits == 8 else count // spec.block_size)
            else:
                total += 4 * count
    return total


def weight_scale(weight: torch.Tensor) -> torch.Tensor:
    """Symmetric int8 scale of each row: (R, …) → (R, 1) = max |w| / 127."""
    return (weight.abs().amax(dim=-1, keepdim=True) / INT8_MAX).clamp_min(1e-12)


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes each row to int8: (R, K) → int8 (R, K) and scales (R, 1)."""
    scale = weight_scale(weight)
    return (weight / scale).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scale


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
    scale = ((high - low) / 255.0).clamp_min(1e-12)
    zero_point = (-low / scale).round().clamp(0, 255)
    return ((x / scale).round() + zero_point).clamp(0, 255).sub(zero_point).mul(scale)


class DynamicInt8Linear(nn.Module):
    """Simulation of ``DynamicQuantizeLinear`` → ``MatMulInteger`` → rescale, in floating point.

    Sums of products of 8-bit integers are exact in fp32 up to 2^24, so for K ≤ 500 this equals the integer result and
    beyond that it differs by rounding of the sum only.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        codes, scale = quantize_rows(linear.weight.detach())
        self.register_buffer("weight", codes.float() * scale)
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(dynamic_uint8(x), self.weight, self.bias)  # type: ignore[arg-type]


def simulate_table(weight: torch.Tensor, bits: int, block_size: int) -> torch.Tensor:
    """Rounds an embedding table (V, H) to what its quantized form would give back."""
    if bits == 8:
        codes, scale = quantize_rows(weight)
        return codes * scale
    return dequantize_blocks(*quantize_blocks(weight, block_size))


def simulate(model: nn.Module, spec: Spec) -> None:
    """Replaces, in place, what the spec names by its simulation. Idempotent on weights that are already rounded."""
    for name in spec.linears:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, DynamicInt8Linear(model.get_submodule(name)))  # type: ignore[arg-type]
    for name, bits in spec.embeddings.items():
        table = model.get_submodule(name)
        with torch.no_grad():
            table.weight.copy_(simulate_table(table.weight, bits, spec.block_size))  # type: ignore[operator, arg-type]

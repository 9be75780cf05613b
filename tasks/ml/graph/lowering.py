"""Lowering: puts the runtime's integer operators where a quantization spec says, by replacing PyTorch modules.

The counterpart of ``simulation.simulate``: that one replaces modules by what they *compute* once quantized, this one
by the ONNX Runtime operators that compute it, with the same codes and scales. The replaced model can be exported and
not run. B = rows, S = tokens, K = inputs, M = outputs, V = vocabulary, H = hidden.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.graph import integers
from tasks.ml.models import families, quantization_spec
from tasks.ml.quantization import simulation


class IntegerEmbedding(nn.Module):
    """An int8 table with one scale per row; the table stays int8 in file and memory, only gathered rows are widened."""

    codes: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        codes, scale = simulation.quantize_rows(weight)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.codes).to(self.scale.dtype) * F.embedding(ids, self.scale)

    def dense(self) -> torch.Tensor:
        return self.codes.to(self.scale.dtype) * self.scale


class BlockEmbedding(nn.Module):
    """A table of 4-bit codes with one scale per block of a row, two codes to a byte: ``GatherBlockQuantized``."""

    codes: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, block_size: int) -> None:
        super().__init__()
        if block_size < 16 or block_size & (block_size - 1):
            raise FeatherweightError(f"quantization: block_size {block_size} is not a power of two from 16 on")
        codes, scale = simulation.quantize_blocks(weight, block_size)
        self.register_buffer("codes", integers.two_to_a_byte(codes))
        self.register_buffer("scale", scale)
        self.hidden, self.block_size = weight.shape[1], block_size

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        inputs, shape = (self.codes, ids, self.scale), (*ids.shape, self.hidden)
        how = {"bits": 4, "block_size": self.block_size, "gather_axis": 0, "quantize_axis": 1}
        return integers.contrib("GatherBlockQuantized", inputs, how, shape=shape, dtype=self.scale.dtype)


class Positions(nn.Module):
    """Rows first, first + 1, … of the position table, with the row of the only token type added in.

    Right-padded texts whose padding is masked need no other positions, whatever a model derives from its input. The
    sum holds constants only: the runtime folds it into one fp32 table as it loads, so a run pays for a single slice.
    """

    token_type: torch.Tensor

    def __init__(self, positions: nn.Embedding | IntegerEmbedding, *, first: int, token_type: torch.Tensor) -> None:
        super().__init__()
        self.positions, self.first = positions, first
        self.register_buffer("token_type", token_type)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        table = self.positions.dense() if isinstance(self.positions, IntegerEmbedding) else self.positions.weight
        return (table + self.token_type).unsqueeze(0)[:, self.first : self.first + ids.shape[-1]]


class Nothing(nn.Module):
    """Stands where a table has been added into another one."""

    def forward(self, ids: torch.Tensor) -> float:
        return 0.0


def integer_linear(linear: nn.Linear, how: quantization_spec.LinearScheme, block_size: int) -> nn.Module:
    """The operators that a scheme asks for."""
    lowered: nn.Module
    if how.scheme == quantization_spec.INT8_STATIC:
        lowered = integers.StaticLinear(linear, how)
    elif how.scheme == quantization_spec.INT4:
        lowered = integers.BlockLinear(linear, how, block_size)
    else:
        lowered = integers.DynamicLinear(linear, how)
    return integers.SmoothedLinear(lowered, how) if how.smoothing else lowered


def lower(model: nn.Module, spec: quantization_spec.Spec) -> None:
    """Replaces, in place, what the spec names by the runtime's integer operators, and what a server can do without."""
    family = families.of_model(model)
    backbone = family.backbone(model)
    positions: Any = backbone.get_submodule(family.position_embeddings)
    # A table that keeps a row for padding counts tokens from the row after it, as RoBERTa's does.
    first = 0 if positions.padding_idx is None else positions.padding_idx + 1
    for name, how in spec.linears.items():
        model.set_submodule(name, integer_linear(model.get_submodule(name), how, spec.block_size))  # type: ignore[arg-type]
    for name, bits in spec.embeddings.items():
        weight = model.get_submodule(name).weight.detach()  # type: ignore[operator]
        table = IntegerEmbedding(weight) if bits == 8 else BlockEmbedding(weight, spec.block_size)
        model.set_submodule(name, table)
    token_type = backbone.get_submodule(family.token_types).weight.detach()[0].clone()  # type: ignore[operator]
    # Token-type ids have the shape of the input, whereas position ids are cut from a buffer that bounds it.
    positions = backbone.get_submodule(family.position_embeddings)  # plain, or lowered by now
    backbone.set_submodule(family.token_types, Positions(positions, first=first, token_type=token_type))
    backbone.set_submodule(family.position_embeddings, Nothing())

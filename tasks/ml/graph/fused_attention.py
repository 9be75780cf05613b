"""Attention as one fused operator of ONNX Runtime, emitted while exporting instead of searched for afterwards.

Graph optimizers look for attention by the shape of the graph an exporter leaves, and find none in models of
transformers 5. The models do let attention and its mask be replaced by name, so the operator is put there by
construction. B = rows, N = heads, S = tokens, D = head size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from tasks.ml.graph.integers import contrib

NAME = "featherweight_fused"


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Emits the operator for query, key and value (B, N, S, D); returns (B, S, N, D) as transformers expects."""
    assert torch.onnx.is_in_onnx_export(), "the fused operator exists in exported graphs only"
    rows, heads, tokens, size = query.shape
    flat = [part.transpose(1, 2).reshape(part.shape[0], part.shape[2], -1) for part in (query, key, value)]
    how = {"num_heads": int(heads), "scale": float(scaling if scaling is not None else size**-0.5)}
    shape = (rows, tokens, heads * size)
    output = contrib("MultiHeadAttention", (*flat, None, attention_mask), how, shape=shape, dtype=query.dtype)
    return output.reshape(rows, tokens, heads, size), None


def _mask(*, attention_mask: torch.Tensor | None, **_: Any) -> torch.Tensor | None:
    """The operator takes the padding mask (B, S) as it is, as int32: 1 on tokens, 0 on padding."""
    return None if attention_mask is None else attention_mask.to(torch.int32)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)


@contextlib.contextmanager
def emitted(model: nn.Module) -> Iterator[None]:
    """Within the block, exporting the model emits the fused operator for every attention layer."""
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before

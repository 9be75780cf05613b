"""Attention that a CPU can afford to train. torch's own is slow there in two cases.

While it drops probabilities it falls back to a slower form of what is spelled out here. In 16 bits its backward pass
multiplies without the instructions for them: on two cores of a Xeon with AMX it took three to eleven times as long as
in fp32 for 27 to 64 tokens, which was 40 % of a training step. So what surrounds attention computes in 16 bits, and
attention in fp32.

B = rows, A = heads, S = tokens, D = head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from tasks.ml.models.dropout import mask

DROPPING = "featherweight_dropping"
IN_FP32 = "featherweight_in_fp32"


def _dropping(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of (B, A, S, D) to (B, S, A, D), with dropout of its probabilities."""
    scores = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = torch.softmax(scores, dim=-1)
    if dropout > 0:
        probabilities = probabilities * mask(probabilities.shape, dropout).to(probabilities.dtype)
    return (probabilities @ value).transpose(1, 2), None


def _in_fp32(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **how: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' fused attention of (B, A, S, D) to (B, S, A, D), in fp32 whatever surrounds it."""
    with torch.autocast(query.device.type, enabled=False):
        output, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **how)
    return output.to(query.dtype), None


AttentionInterface.register(DROPPING, _dropping)
AttentionMaskInterface.register(DROPPING, eager_mask)
AttentionInterface.register(IN_FP32, _in_fp32)
AttentionMaskInterface.register(IN_FP32, sdpa_mask)


def affordable(model: nn.Module, autocast: torch.dtype | None) -> str:
    """Name of the implementation to train a model with on its device; its own where that is as fast.

    Args:
        autocast: data type of 16 bits that surrounds attention, if any.
    """
    config: Any = getattr(model, "config", None)
    own = str(getattr(config, "_attn_implementation", ""))
    if next(model.parameters()).device.type != "cpu":
        return own
    if getattr(config, "attention_probs_dropout_prob", 0) > 0:
        return DROPPING
    return IN_FP32 if autocast is not None and own == "sdpa" else own


@contextmanager
def afforded(model: nn.Module, autocast: torch.dtype | None) -> Iterator[None]:
    """Has a transformers model use the ``affordable`` implementation while it is open."""
    name = affordable(model, autocast)
    config: Any = getattr(model, "config", None)
    own = str(getattr(config, "_attn_implementation", ""))
    if name == own:
        yield
        return
    switch = cast(Callable[[str], None], model.set_attn_implementation)
    switch(name)
    try:
        yield
    finally:
        switch(own)

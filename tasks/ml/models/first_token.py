"""Leaves out what nobody reads. A head on the first token makes the last layer's other tokens waste.

The last layer's attention then has one query, its output projection, FFN and norms run on one token instead of S, and
even keys and values need not be taken of every token. In floating point that changes nothing. Where activations are
quantized per tensor, their scale is then taken over that token only, and keys and values, whose products with the
tokens are never made, have their weights quantized and nothing else. B = rows, S = tokens, H = hidden, N = heads,
D = head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from tasks.ml.models import families


class FirstToken(nn.Module):
    """Runs a residual block on what attention gave for the first token: (B, 1, ·), (B, S, H) → (B, 1, H)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        return self.block(hidden_states, input_tensor[:, :1])


class FirstTokenOfAll(FirstToken):
    """The same where attention gives all tokens: (B, S, ·), (B, S, H) → (B, 1, H)."""

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states[:, :1], input_tensor)


def _dense(linear: nn.Module) -> torch.Tensor:
    """Weight (outputs, inputs) of a linear layer, plain, simulated or lowered."""
    return linear.dense() if hasattr(linear, "dense") else linear.weight  # type: ignore[operator, return-value]


class FirstQuery(nn.Module):
    """Attention of the first token to all tokens: (B, S, H) → (B, 1, N·D), without a key or a value.

    With one query q per head, scores are q · (W_K x) = (W_Kᵀ q) · x, and the mix of values is W_V (Σ a x) + b_V, since
    the weights a sum to 1. Both projections so run on one vector per head instead of S. The bias of the keys adds the
    same to all scores of a head, so that softmax drops it. It is what multi-head latent attention does in decoding
    (DeepSeek-AI 2024, arXiv:2405.04434, section 2.1.2, "absorbed" matrices).
    """

    def __init__(self, query: nn.Module, key: nn.Module, value: nn.Module, *, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.heads = query, key, value, heads
        self.size = _dense(key).shape[0] // heads

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        x = hidden_states
        query = self.query(x[:, :1]).view(-1, self.heads, self.size).transpose(0, 1)  # (N, B, D)
        key = _dense(self.key).unflatten(0, (self.heads, -1)) * self.size**-0.5  # (N, D, H)
        scores = (query @ key).transpose(0, 1) @ x.transpose(1, 2)  # (B, N, S)
        if attention_mask is not None:
            scores = _masked(scores, attention_mask)
        mixed = (scores.softmax(dim=-1) @ x).transpose(0, 1)  # (N, B, H)
        value = _dense(self.value).unflatten(0, (self.heads, -1)).transpose(1, 2)  # (N, H, D)
        return (mixed @ value).transpose(0, 1).reshape(-1, 1, self.heads * self.size) + self.value.bias, None


def _masked(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Scores (B, N, S) whose padding gets no weight.

    A row that is all padding spreads its weight evenly, as in the runtime's own attention. With −∞ it would be NaN,
    which the scale of activations carries into every other row of a batch.

    Args:
        mask: 1 on tokens and 0 on padding (B, S), as the runtime's operators take it; or as attention in PyTorch takes
            it, for every query (B, 1, S or 1, S): true on tokens, or what to add.
    """
    mask = mask[:, 0, :1] if mask.dim() == 4 else mask.bool().unsqueeze(1)
    if mask.dtype != torch.bool:
        return scores + mask
    return torch.where(mask, scores, torch.finfo(scores.dtype).min)


def _residual_block(family: families.Family) -> str:
    """Name of the first residual block in a layer."""
    return family.attention_output.rpartition(".")[0]


def _last_layer(model: nn.Module) -> tuple[families.Family, nn.Module]:
    family = families.of_model(model)
    return family, family.layer_list(model)[-1]


def narrow_layer(family: families.Family, layer: nn.Module) -> None:
    """Makes a layer, in place, compute its first token only; the hidden states it returns are (B, 1, H)."""
    name = _residual_block(family)
    block = layer.get_submodule(name)
    names = (family.query, family.key, family.value) if family.num_heads(layer) else ()
    parts = [layer.get_submodule(part) for part in names]
    # Two codes in a byte of the weights of keys and values would have to be taken apart first.
    if parts and not any(getattr(part, "packed", False) for part in parts[1:]):
        layer.set_submodule(family.attention, FirstQuery(*parts, heads=family.num_heads(layer)))
        layer.set_submodule(name, FirstToken(block))
    else:
        layer.set_submodule(name, FirstTokenOfAll(block))


def narrow(model: nn.Module) -> None:
    """Makes the last layer, in place, compute its first token only."""
    narrow_layer(*_last_layer(model))


@contextmanager
def as_read(model: nn.Module) -> Iterator[None]:
    """While it is open, every module is given only what is read of what it puts out, the last query included: for
    looking at inputs. The model says what it said, and keeps all names."""
    family, layer = _last_layer(model)
    tokens = 0

    def first(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        nonlocal tokens
        tokens = given[0].shape[1]
        return (given[0][:, :1],)

    def for_all(_: nn.Module, __: object, query: torch.Tensor) -> torch.Tensor:
        return query.expand(-1, tokens, -1)  # attention wants one per token

    with ExitStack() as hooks:
        if family.num_heads(layer):
            query = layer.get_submodule(family.query)
            hooks.enter_context(query.register_forward_pre_hook(first))
            hooks.enter_context(query.register_forward_hook(for_all))
        hooks.enter_context(narrowed(model))
        yield


@contextmanager
def narrowed(model: nn.Module) -> Iterator[None]:
    """Narrows while it is open, and keeps the names of all parameters: for training. No gradient changes by it."""
    family, layer = _last_layer(model)
    block = layer.get_submodule(_residual_block(family))
    with block.register_forward_pre_hook(lambda _, states: tuple(x[:, :1] for x in states)):
        yield

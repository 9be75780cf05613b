"""What stands where a whole attention or FFN block was cut out. B = rows, S = tokens, H = hidden.

With all heads gone a residual block y = norm(x + W·a + b) is y = norm(x + b), and the same holds for FFN channels: the
bias stays, and so do residual and norm. What is left equals the full model with all those units gated to zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tasks.ml.models.families import Family


class NoHeads(nn.Module):
    """Stands where self-attention stood: it passes on its input (B, S, H), which ``OnlyBias`` then ignores."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        return hidden_states, None


class NoChannels(nn.Module):
    """Stands where the first FFN matrix stood: (B, S, H) → (B, S, 0)."""

    out_features = 0

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = in_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., :0]


class OnlyBias(nn.Module):
    """Stands where the matrix stood that closed the block: gives its bias (H,), whatever it is asked."""

    in_features = 0

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features = linear.out_features
        bias = linear.bias if linear.bias is not None else torch.zeros(linear.out_features)
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.bias


def remove_heads(family: Family, layer: nn.Module) -> None:
    """Takes a layer's attention away, in place."""
    size = family.head_size(layer)
    layer.set_submodule(family.attention, NoHeads())
    layer.set_submodule(family.attention_output, OnlyBias(layer.get_submodule(family.attention_output)))  # type: ignore[arg-type]
    family.set_num_heads(layer, 0, size)


def remove_channels(family: Family, layer: nn.Module) -> None:
    """Takes a layer's FFN away, in place."""
    layer.set_submodule(family.ffn_up, NoChannels(layer.get_submodule(family.ffn_up).in_features))  # type: ignore[arg-type]
    layer.set_submodule(family.ffn_down, OnlyBias(layer.get_submodule(family.ffn_down)))  # type: ignore[arg-type]

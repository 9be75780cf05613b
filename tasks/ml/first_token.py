"""Leaves out what nobody reads. A head on the first token makes the last layer's other tokens waste.

Keys and values of the last layer are still taken of every token; its output projection, FFN and norms then run on one
token instead of S. In floating point that changes nothing. Where activations are quantized per tensor, their scale is
then taken over that token only. B = rows, S = tokens, H = hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tasks.ml import families


class FirstToken(nn.Module):
    """Runs a residual block on the first token only: (B, S, ·), (B, S, H) → (B, 1, H)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        return self.block(hidden_states[:, :1], input_tensor[:, :1])


def _residual_block(model: nn.Module) -> tuple[nn.Module, str]:
    """The first residual block of the last layer, as its parent and its name there."""
    config: Any = model.config
    family = families.of(config.model_type)
    last = family.layer_list(model)[-1]
    parent, _, name = family.attention_output.rpartition(".")[0].rpartition(".")
    return last.get_submodule(parent), name


def narrow(model: nn.Module) -> None:
    """Makes the last layer, in place, compute its first token only; the hidden states it returns are (B, 1, H)."""
    parent, name = _residual_block(model)
    setattr(parent, name, FirstToken(getattr(parent, name)))


@contextmanager
def narrowed(model: nn.Module) -> Iterator[None]:
    """Narrows while it is open, and keeps the names of all parameters: for training. No gradient changes by it."""
    parent, name = _residual_block(model)
    hook = parent.get_submodule(name).register_forward_pre_hook(lambda _, states: tuple(x[:, :1] for x in states))
    try:
        yield
    finally:
        hook.remove()

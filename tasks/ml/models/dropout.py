"""Dropout that a CPU can afford. On two cores, torch's takes a sixth of a training step: it draws a double per element.

Here four elements share one 64-bit random number, and the mask is a float that both passes multiply by. What attention
drops is in ``attention``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

LEVELS = 2**16
"""A probability is rounded to one in so many: 16 bits are drawn per element."""


def mask(shape: torch.Size, probability: float) -> torch.Tensor:
    """Draws 0 with the probability, to 16 bits, and else what keeps the mean at 1; torch's CPU generator seeds it."""
    dropped = round(probability * LEVELS)
    count = shape.numel()
    if torch.compiler.is_compiling():  # it knows that this draws, and that two draws are not one
        words = torch.randint(-(2**63), 2**63 - 1, (-(-count // 4),), dtype=torch.int64)
    else:
        # torch's generator takes three times as long for a word, so it only says where a stream of another one starts.
        stream = np.random.Generator(np.random.PCG64DXSM(int(torch.empty((), dtype=torch.int64).random_())))
        words = torch.from_numpy(stream.integers(0, 2**64, -(-count // 4), dtype=np.uint64).view(np.int64))
    lanes = words.view(torch.int16)[:count].float()
    return lanes.ge_(dropped - LEVELS // 2).mul_(LEVELS / (LEVELS - dropped)).view(shape)


class Dropout(nn.Module):
    """Stands in for ``nn.Dropout``: zeroes elements at random and scales up the others (Srivastava et al. 2014)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * mask(x.shape, self.p).to(x.dtype) if self.training else x


def fields(config: Any) -> list[str]:
    """Names under which a transformers configuration has a probability of dropout: of hidden states, attention, head.

    One that is ``None`` follows another.
    """
    return [name for name, value in config.to_dict().items() if "dropout" in name and isinstance(value, float | int)]


def _put_back(parent: nn.Module, name: str, original: nn.Module) -> None:
    original.train(parent.get_submodule(name).training)
    setattr(parent, name, original)


@contextmanager
def cheaper(model: nn.Module) -> Iterator[None]:
    """Replaces a model's dropout modules while it is open, if it drops anything and is on the CPU."""
    owners = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Dropout) and child.p > 0
    ]
    if not owners or next(model.parameters()).device.type != "cpu":
        yield
        return
    with ExitStack() as undo:
        for parent, name, child in owners:
            setattr(parent, name, Dropout(child.p).train(child.training))
            undo.callback(_put_back, parent, name, child)
        yield

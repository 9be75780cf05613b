"""Rows that quantizers look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn


def rows_of(model: nn.Module, count: int = 3) -> Callable[[], Iterator[dict[str, torch.Tensor]]]:
    """Batches of random rows; the second half of each has padding."""

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(7)
        for length in range(6, 6 + count):
            ids = torch.randint(5, model.config.vocab_size, (8, length), generator=generator)  # type: ignore[union-attr, call-overload]
            mask = torch.ones_like(ids)
            mask[4:, length // 2 :] = 0
            yield {"input_ids": ids, "attention_mask": mask}

    return batches

"""Scales of a cache in int8: one for each channel of each head's keys and values.

Keys have channels that are many times larger than others, in every token, and values do not (KIVI, Liu et al. 2024,
arXiv:2402.02750, section 3.2); a scale per channel takes that up, and is what the CPU operator reads. B = rows,
S = tokens, K = heads of keys and values, D = head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from tasks.ml.quantization.simulation import INT8_MAX

TINY = 1e-8


class Scales(NamedTuple):
    """Of one layer: what a code of one stands for, fp32 (K · D)."""

    keys: torch.Tensor
    values: torch.Tensor


@torch.inference_mode()
def of_rows(model: nn.Module, rows: Sequence[torch.Tensor]) -> list[Scales]:
    """Scales of every layer by which no key and no value of these rows is cut; keys are as rotated.

    Args:
        rows: token ids of the calibration split, (B, S) each, without padding.
    """
    largest: list[tuple[torch.Tensor, torch.Tensor]] = []
    for ids in rows:
        cache = model(input_ids=ids, use_cache=True).past_key_values
        found = [tuple(part.abs().amax(dim=(0, 2)) for part in (one.keys, one.values)) for one in cache.layers]
        if largest:
            found = [
                tuple(torch.maximum(*pair) for pair in zip(one, other, strict=True))
                for one, other in zip(largest, found, strict=True)
            ]
        largest = found
    return [Scales(*((one.flatten() / INT8_MAX).clamp_min(TINY) for one in layer)) for layer in largest]

"""Which layers give up how much, so that a latency is met and least importance is lost.

ZipLM (Kurtic, Frantar & Alistarh 2023, arXiv:2302.04089, section 3.2) after SPDY (Frantar & Alistarh 2022,
arXiv:2201.13096, section 3): every block of every layer is kept at one of several widths, each with a measured time and
a loss; a dynamic program over the discretised time finds the least total loss within the target. CoFi (Xia, Zhong &
Chen 2022, arXiv:2204.00408) has the same freedom, down to whole blocks, and learns it by gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tasks.contracts import FeatherweightError
from tasks.ml.importance import LayerImportance
from tasks.ml.latency_table import LatencyTable

STEPS = 4000
"""Steps that the time at hand is divided into."""


@dataclass(frozen=True)
class Option:
    """One width of one block: what it costs, and what is lost against the full width."""

    units: int
    milliseconds: float
    lost: float


def choose(blocks: Sequence[Sequence[Option]], *, milliseconds: float, steps: int = STEPS) -> list[int]:
    """Picks one option per block so that the total time fits and the total loss is least; returns their indices.

    Times are rounded up to steps of ``milliseconds / steps``: the target is never exceeded, and what is found is
    exact for the rounded times. Of equal losses the faster is taken.

    Raises:
        FeatherweightError: even the fastest options take longer.
    """
    fastest = sum(min(option.milliseconds for option in block) for block in blocks)
    step = milliseconds / steps if milliseconds > 0 else 0.0
    # The tolerance keeps a time that is a whole number of steps from being rounded up one more.
    costs = [
        [math.ceil(option.milliseconds / step - 1e-9) if step else steps + 1 for option in block] for block in blocks
    ]
    best = np.zeros(steps + 1)  # least loss of the blocks so far within t steps
    taken = np.zeros((len(blocks), steps + 1), dtype=np.int64)
    for number, (block, cost) in enumerate(zip(blocks, costs, strict=True)):
        found = np.full((len(block), steps + 1), np.inf)
        for index, option in enumerate(block):
            if cost[index] <= steps:
                found[index, cost[index] :] = best[: steps + 1 - cost[index]] + option.lost
        taken[number], best = found.argmin(axis=0), found.min(axis=0)
    if not np.isfinite(best[-1]):
        raise FeatherweightError(
            f"the fastest that pruning can make these blocks is {fastest:.3f} ms, and the target is "
            f"{max(milliseconds, 0.0):.3f} ms"
        )
    left = int(np.argmax(best <= best[-1]))
    chosen = []
    for number in reversed(range(len(blocks))):
        chosen.append(int(taken[number, left]))
        left -= costs[number][chosen[-1]]
    return chosen[::-1]


def options(scores: torch.Tensor, times: Mapping[int, float]) -> list[Option]:
    """The widths of a block up to the one it has, fastest first: each loses the scores of its least important units.

    Args:
        scores: importance of each unit.
        times: milliseconds that so many units add; widths between are interpolated.
    """
    lost = torch.cat([torch.zeros(1), scores.sort().values.double().cumsum(0)]).tolist()
    widths = sorted({width for width in times if width < len(scores)} | {len(scores)})
    ms = np.interp(widths, list(times), list(times.values())).tolist()
    return [Option(width, cost, lost[len(scores) - width]) for width, cost in zip(widths, ms, strict=True)]


def allocate(
    importance: Sequence[LayerImportance], table: LatencyTable, *, milliseconds: float
) -> list[dict[str, int]]:
    """Heads and FFN channels to keep in each layer, as ``surgery.keep_counts`` takes them; zero takes a block away.

    Args:
        importance: of all units of each layer.
        milliseconds: that the whole model may take by the table.

    Raises:
        FeatherweightError: even a model without heads and channels takes longer.
    """
    count = len(importance)
    layers = [table.layer(index, count) for index in range(count)]
    blocks = [
        options(scores, times)
        for one, layer in zip(importance, layers, strict=True)
        for scores, times in ((one.heads, layer.heads), (one.ffn, layer.ffn))
    ]
    fixed = table.rest + sum(layer.base for layer in layers)
    try:
        chosen = choose(blocks, milliseconds=milliseconds - fixed)
    except FeatherweightError as error:
        raise FeatherweightError(
            f"pruning.target_speedup: the target is {milliseconds:.3f} ms, and {fixed:.3f} ms are embeddings, norms "
            "and head, which pruning leaves; lower target_speedup, or take fewer layers in distillation"
        ) from error
    units = [block[index].units for block, index in zip(blocks, chosen, strict=True)]
    return [{"heads": heads, "ffn": ffn} for heads, ffn in zip(units[::2], units[1::2], strict=True)]

"""Which layers give up how much, so that a latency is met and least is lost.

ZipLM (Kurtic, Frantar & Alistarh 2023, arXiv:2302.04089, section 3.2) after SPDY (Frantar & Alistarh 2022,
arXiv:2201.13096, section 3): every block of every layer is kept at one of several widths, each with a measured time and
a loss; a dynamic program over the discretised time finds the least total loss within the target. Losses of blocks do
not add up, above all where every block of a kind goes: so what the program finds is tried, and its losses are weighted
anew, as SPDY does. CoFi (Xia, Zhong & Chen 2022, arXiv:2204.00408) has the same freedom, down to whole blocks, and
learns it by gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tasks.contracts.base import FeatherweightError
from tasks.ml.latency.latency_table import LatencyTable

STEPS = 4000
"""Steps that the time at hand is divided into."""
TRIES = 128
"""Weightings that are tried, the first half anywhere, the others near the best."""
PROBES, HALVINGS = 24, 6
"""Weightings after which a time is taken not to be had for a damage, and times that are asked about."""
ANYWHERE, NEAR = 1.0, 0.5
"""Powers of ten, up or down, that a weight is away from one, and from the best."""

Shapes = list[dict[str, int]]
"""``heads`` and ``ffn`` of each layer."""
Damage = Callable[[Shapes], float]


@dataclass(frozen=True)
class Option:
    """One width of one block: what it costs, and what is lost against the full width."""

    units: int
    milliseconds: float
    lost: float


@dataclass(frozen=True)
class _Tried:
    """A whole model's shapes, which weights of the blocks led to them, their time by the table, and what they lose."""

    weights: np.ndarray
    shapes: Shapes
    milliseconds: float
    damage: float


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


def options(units: int, times: Mapping[int, float]) -> list[tuple[int, float]]:
    """The widths of a block up to the one it has, narrowest first, and the milliseconds that they add.

    Args:
        times: milliseconds that so many units add; widths between are interpolated.
    """
    widths = sorted({width for width in times if width < units} | {units})
    return list(zip(widths, np.interp(widths, list(times), list(times.values())).tolist(), strict=True))


def _blocks(full: Shapes, table: LatencyTable, damage: Damage) -> list[list[Option]]:
    """Options of attention and FFN of each layer in turn, with the damage that each does alone."""

    def lost(index: int, kind: str, width: int) -> float:
        if width == full[index][kind]:
            return 0.0
        return damage([shape | {kind: width} if number == index else shape for number, shape in enumerate(full)])

    def block(index: int, kind: str, times: Mapping[int, float]) -> list[Option]:
        widths, milliseconds = zip(*options(full[index][kind], times), strict=True)
        asked = sorted({widths[0], *widths[::-2]})
        found = np.interp(widths, asked, [lost(index, kind, width) for width in asked])
        return list(map(Option, widths, milliseconds, found.tolist()))

    return [
        block(index, kind, times)
        for index in range(len(full))
        for layer in (table.layer(index, len(full)),)
        for kind, times in (("heads", layer.heads), ("ffn", layer.ffn))
    ]


def allocate(
    full: Shapes,
    table: LatencyTable,
    *,
    milliseconds: float,
    damage: Damage,
    most: float = math.inf,
    tries: int = TRIES,
    seed: int = 0,
) -> tuple[Shapes, float]:
    """Finds the heads and FFN channels to keep in each layer: of all shapes within the time, those that damage least.

    Args:
        full: the shapes that there are.
        milliseconds: that the whole model may take by the table.
        damage: what a model of such shapes loses against the full one, on the calibration split; it is asked once for
            every other width of each block, between which it is interpolated, and then once for each new whole.
        most: damage that is borne; where the time cannot be had for it, the model takes longer.
        tries: weightings of the blocks' losses that are tried.

    Returns:
        Shapes as ``surgery.keep_counts`` takes them, zero for a block that goes, and the damage they do.

    Raises:
        FeatherweightError: even a model without heads and channels takes longer.
    """
    fixed = table.predict([{"heads": 0, "ffn": 0}] * len(full))
    if milliseconds <= fixed:
        raise FeatherweightError(
            f"pruning.width.target_speedup: the target is {milliseconds:.3f} ms, and {fixed:.3f} ms are embeddings, "
            "norms and head, which pruning leaves; lower target_speedup, or take fewer layers in distillation"
        )
    blocks = _blocks(full, table, damage)
    known: dict[tuple[int, ...], _Tried] = {}
    generator = np.random.default_rng(seed)

    def attempt(weights: np.ndarray, limit: float) -> _Tried:
        weighted = [
            [replace(option, lost=option.lost * weight) for option in block]
            for block, weight in zip(blocks, weights, strict=True)
        ]
        chosen = tuple(choose(weighted, milliseconds=limit - fixed))
        if chosen not in known:
            units = [block[index].units for block, index in zip(blocks, chosen, strict=True)]
            shapes = [{"heads": heads, "ffn": ffn} for heads, ffn in zip(units[::2], units[1::2], strict=True)]
            known[chosen] = _Tried(weights, shapes, table.predict(shapes), damage(shapes))
        return known[chosen]

    def search(limit: float, tries: int, *, enough: float = -1.0) -> _Tried:
        """The least damage within a time, or the first that is little enough."""
        attempt(np.ones(len(blocks)), limit)
        # What was tried for a shorter time fits as well.
        best = min((one for one in known.values() if one.milliseconds <= limit), key=lambda one: one.damage)
        for number in range(1, tries):
            if best.damage <= enough:
                break
            if number < tries // 2:
                candidate = 10 ** generator.uniform(-ANYWHERE, ANYWHERE, len(blocks))
            else:
                candidate = best.weights * 10 ** generator.uniform(-NEAR, NEAR, len(blocks))
            found = attempt(candidate, limit)
            if found.damage < best.damage:
                best = found
        return best

    limit = milliseconds
    if most < math.inf:
        # For which nothing has to go, though the time of each block is rounded up to a step.
        slow = fixed + (table.predict(full) - fixed) * (1 + 2 * len(blocks) / STEPS)
        limit = _shortest(lambda limit: search(limit, PROBES, enough=most).damage, most, fast=milliseconds, slow=slow)
    best = search(limit, tries)
    return best.shapes, best.damage


def _shortest(damage: Callable[[float], float], most: float, *, fast: float, slow: float) -> float:
    """The shortest of ``HALVINGS`` times, from a wanted one up to a slow one, for which little enough is lost."""
    limit = fast
    for _ in range(HALVINGS):
        if damage(limit) > most:
            fast = limit
        elif limit == fast:
            return limit
        else:
            slow = limit
        limit = (fast + slow) / 2
    return slow

"""Two models against each other: how likely as much is where they do not differ, and an interval at any level.

Both say the same: an interval at a level leaves no difference out exactly where the p-value is at most that level.
S = seeds, N = rows, R = rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, ndtr, ndtri

from tasks.ml.statistics import bootstrap
from tasks.ml.statistics.comparison import Estimate


@dataclass(frozen=True)
class Contrast:
    """One comparison."""

    p_value: float
    """Two-sided."""
    interval: Callable[[float], Estimate]
    """From a level, such as 0.05, to what was measured and the interval at one minus that level."""


def of_rows(first: np.ndarray, second: np.ndarray) -> Contrast:
    """Mean over seeds and rows of ``first − second``, for other rows, and other seeds where there are several.

    A paired Wald test that allows for what was not seen, as in ``multiplicity.non_inferiority_p``. Over several seeds
    the variance is that of rows and seeds resampled independently, S − 1 of the seeds at a time: the one that
    ``bootstrap.quality_difference_over_seeds`` draws, without drawing.

    Args:
        first: scores (S, N), as in ``bootstrap.quality_difference``, of one model of each seed.
        second: scores (S, N) of the other, with the same seeds and rows.

    Raises:
        ValueError: the rows do not pair up, or there are none.
    """
    bootstrap.require_pairs(first, second, "SN")
    differences = first.astype(np.float64) - second
    seen = np.hstack([differences, np.tile([1.0, -1.0], (len(first), 1))])
    seeds, n = seen.shape
    variance = seen.mean(axis=0).var() / n
    if seeds > 1:
        between, within = seen.mean(axis=1).var(), seen.var(axis=1).mean() / n
        variance += (between + within - variance) / (seeds - 1)
    middle, error, measured = float(seen.mean()), math.sqrt(variance), float(differences.mean())

    def interval(level: float) -> Estimate:
        half = float(ndtri(1 - level / 2)) * error
        return Estimate(measured, min(middle - half, measured), max(middle + half, measured))

    return Contrast(2 * float(ndtr(-abs(middle) / error)), interval)


def of_rounds(ratios: Sequence[Sequence[float]]) -> Contrast:
    """Geometric mean over seeds of the median ratio of rounds that two models took in turns, against 1.

    The sign test and the order statistics that go with it (Conover 1999, *Practical Nonparametric Statistics*, sections
    3.2 and 3.4), exact whatever the times are distributed like. Of several seeds each must show it: the p-value is the
    largest (Berger 1982, *Multiparameter Hypothesis Testing and Acceptance Sampling*), and the interval holds those of
    all. So few rounds that they could not show it at a level have the interval of all rounds.

    Args:
        ratios: of each seed those of its rounds (S, R), above 0.

    Raises:
        ValueError: a seed has no rounds, or there are none.
    """
    if not ratios or not all(ratios):
        raise ValueError("of_rounds: needs at least one round of each seed")
    measured = math.exp(float(np.mean([math.log(float(np.median(rounds))) for rounds in ratios])))

    def interval(level: float) -> Estimate:
        lows, highs = zip(*(_between(rounds, level) for rounds in ratios), strict=True)
        return Estimate(measured, min(*lows, measured), max(*highs, measured))

    return Contrast(max(_sign_test(rounds) for rounds in ratios), interval)


def _sign_test(rounds: Sequence[float]) -> float:
    """Two-sided p-value of "above and below 1 are equally likely"; a round at 1 counts against both."""
    fewer = min(sum(one <= 1 for one in rounds), sum(one >= 1 for one in rounds))
    return min(1.0, 2 * float(bdtr(fewer, len(rounds), 0.5)))


def _between(rounds: Sequence[float], level: float) -> tuple[float, float]:
    """The k-th smallest and largest, with the largest k whose chance to miss the median is at most the level."""
    ordered, k = sorted(rounds), 0
    while 2 * bdtr(k, len(ordered), 0.5) <= level:
        k += 1
    return ordered[max(k - 1, 0)], ordered[-max(k, 1)]

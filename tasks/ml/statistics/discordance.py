"""Tests of two models on the same rows, from the rows on which only one of them is right.

``lost`` rows only the first model got right, ``gained`` rows only the second, of ``n`` rows in all; the drop is
(lost − gained) / n. Rows on which both are right, or both wrong, say nothing about which is better.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import bdtr, ndtr, ndtri

from tasks.ml.statistics import bootstrap
from tasks.ml.statistics.bootstrap import Interval

MOST_ROWS = 10**9
"""More rows than anyone labels: beyond them a question counts as one that rows do not decide."""


class Discordance(NamedTuple):
    """Rows on which two models part."""

    lost: int
    gained: int
    n: int

    @property
    def drop(self) -> float:
        return (self.lost - self.gained) / self.n


def count(first: np.ndarray, second: np.ndarray) -> Discordance:
    """Counts the rows on which one model's answer is better than the other's, from the scores (N,) of both.

    Raises:
        ValueError: the rows do not pair up, or there are none.
    """
    bootstrap.require_pairs(first, second, "N")
    return Discordance(int((first > second).sum()), int((first < second).sum()), first.size)


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided p-value of the exact McNemar test that neither model is better; of scores other than 0 and 1 it is the
    sign test.

    Under that hypothesis each of the lost + gained rows is a fair coin: p = min(1, 2 P[X ≤ min(lost, gained)]) with X
    binomial of that many throws. McNemar 1947, *Note on the Sampling Error of the Difference between Correlated
    Proportions or Percentages*, in its exact form (Fagerland,
    Lydersen & Laake 2013, *The McNemar Test for Binary Matched-Pairs Data*).
    """
    return min(1.0, 2 * float(bdtr(min(lost, gained), lost + gained, 0.5)))


def _score(margin: float, *, lost: int, gained: int, n: int) -> float:
    """Tango's Z of the hypothesis that the drop is ``margin``; below zero if the drop observed is smaller."""
    # The likeliest probability of a gained row under the hypothesis: the positive root of A q² + B q + C.
    a, b = 2.0 * n, (2 * n - lost + gained) * margin - lost - gained
    c = -gained * margin * (1 - margin)
    root = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * root + margin * (1 - margin))
    distance = lost - gained - n * margin
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance) if distance else 0.0


def gain(lost: int, gained: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Accuracy gained, (gained − lost) / n, with its interval.

    Bonett & Price 2012, *Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired
    Data*: each model gets one more row that only it has right, so that n rows without a difference give about ± 3 / n.
    """
    measured = (gained - lost) / n
    down, up = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    half = float(ndtri((1 + confidence) / 2)) * math.sqrt((down + up - (up - down) ** 2) / (n + 2))
    middle = up - down
    return Interval(measured, max(-1.0, min(middle - half, measured)), min(1.0, max(middle + half, measured)))


def noninferiority(lost: int, gained: int, n: int, *, margin: float) -> float:
    """One-sided p-value of the hypothesis that the drop is ``margin`` or more: small where the second is not worse.

    The score test of Tango 1998, *Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design*. With a margin of 0 it is McNemar's test without its continuity correction.

    Args:
        margin: drop that is still acceptable, a fraction of rows between −1 and 1.

    Raises:
        ValueError: the margin is not between −1 and 1.
    """
    if not -1 <= margin <= 1:
        raise ValueError(f"margin: must be between -1 and 1, not {margin}")
    return float(ndtr(_score(margin, lost=lost, gained=gained, n=n)))


def largest_drop(lost: int, gained: int, n: int, *, confidence: float = 0.95) -> float:
    """The drop that ``noninferiority`` just does not reject: with this one-sided confidence it is not larger.

    By halving, to the last bit: ``scipy.optimize`` would be 170 modules more to import for every command that reports.
    """
    wanted = float(ndtri(1 - confidence))
    edge = 1 - 1e-12

    def beyond(margin: float) -> float:
        return max(-1e9, min(1e9, _score(margin, lost=lost, gained=gained, n=n))) - wanted

    if beyond(edge) > 0:
        return edge
    low, high = -edge, edge
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if beyond(middle) > 0 else (low, middle)
    return high


def rows_needed(
    lost: int, gained: int, n: int, *, rule_out: float, confidence: float = 0.95, power: float = 0.8
) -> int | None:
    """Rows at which an interval of the drop excludes ``rule_out`` with this power, if the rates observed are the true.

    Without the allowance below it is N = (z₁₋α⸝₂ + z_power)² (ψ − d²) / (rule_out − d)², with the discordance
    ψ = (lost + gained) / n and the drop d = (lost − gained) / n: Connett, Smith & McHugh 1987, *Sample Size and Power
    for Pair-Matched Case-Control Studies*, shifted to a margin as in Nam 1997, *Establishing Equivalence of Two
    Treatments and Sample Size Requirements in Matched-Pairs Design*, with the variance that an interval has. As in
    ``bootstrap.quality_difference`` each model gets one more row that only it has right (Bonett & Price 2012), so
    that a sample without any discordant row asks for some rows, too; N is then the root of that equation.

    Returns:
        ``None`` where the drop observed is ``rule_out`` itself, or so near that no number of rows would help.
    """
    distance_in_errors = float(ndtri((1 + confidence) / 2) + ndtri(power))
    discordance, drop = (lost + gained) / n, (lost - gained) / n

    def decides(rows: int) -> bool:
        shifted = drop * rows / (rows + 2)
        variance = (discordance * rows + 2) / (rows + 2) - shifted**2
        return abs(rule_out - shifted) > distance_in_errors * math.sqrt(max(0.0, variance) / (rows + 2))

    enough = 1
    while not decides(enough):
        enough *= 2
        if enough > MOST_ROWS:
            return None
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        too_few, enough = (too_few, middle) if decides(middle) else (middle, enough)
    return enough

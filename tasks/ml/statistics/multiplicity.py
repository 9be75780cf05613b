"""Several comparisons on the same rows: levels that keep the chance of any false claim below one level.

Holm 1979, *A Simple Sequentially Rejective Multiple Test Procedure*: the k p-values in ascending order are held against
α / k, α / (k − 1), …, α, up to the first that is not below its level. The chance that any true hypothesis is rejected
stays below α, whatever the dependence between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr


def holm_levels(p_values: Sequence[float], level: float) -> list[float]:
    """The level that each comparison is held against, in the order given.

    From the first that does not pass on, all are held against the level at which it failed.

    Raises:
        ValueError: a p-value or the level is no probability.
    """
    if not all(0 <= p <= 1 for p in p_values) or not 0 < level < 1:
        raise ValueError(f"p-values lie in 0 … 1 and a level between them, not {list(p_values)} and {level}")
    levels = [0.0] * len(p_values)
    left, stopped = len(p_values), False
    for index in sorted(range(len(p_values)), key=lambda one: p_values[one]):
        levels[index] = level / left
        stopped = stopped or p_values[index] > levels[index]
        left -= not stopped
    return levels


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: each the smallest level at which its hypothesis is rejected."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda one: p_values[one])
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def non_inferiority_p(first: np.ndarray, second: np.ndarray, margin: float) -> float:
    """One-sided p-value of "the second model loses at least ``margin`` of quality against the first".

    A paired Wald test whose variance allows for what was not seen: one row more for each model, as in Bonett & Price
    2012, *Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired Data*.

    Args:
        first: score of each row under the reference, (N,), as ``bootstrap.quality_difference`` takes it.
        second: the same rows under the model in question, (N,).
    """
    differences = np.append(first.astype(np.float64) - second, [1.0, -1.0])
    error = float(differences.std()) / np.sqrt(differences.size)
    return float(ndtr((differences.mean() - margin) / error))

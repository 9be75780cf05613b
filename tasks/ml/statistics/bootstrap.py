"""Bootstrap intervals for paired measurements. N = rows or timing rounds.

The bootstrap is Efron & Tibshirani 1993, *An Introduction to the Bootstrap*, chapter 13 (percentile intervals); its
paired form, which resamples rows and keeps both models' scores of a row together, is Koehn 2004, *Statistical
Significance Tests for Machine Translation Evaluation*.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
BLOCK = 4_000_000
"""Most numbers that are drawn at once: 32 MB, however many rows there are."""
FEW = 64
"""Distinct differences up to which counts of them are drawn instead of rows."""


class Interval(NamedTuple):
    """A measurement and the two ends of its confidence interval."""

    measured: float
    low: float
    high: float


def require_pairs(first: np.ndarray, second: np.ndarray, axes: str) -> None:
    """Raises ``ValueError`` unless two arrays with these axes, a letter each, have the same rows, and some."""
    if first.shape != second.shape or first.ndim != len(axes) or first.size == 0:
        raise ValueError(
            f"paired rows need two equal shapes ({', '.join(axes)}), none of it 0, not {first.shape} and {second.shape}"
        )


def _percentiles(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def paired_difference(
    first: np.ndarray, second: np.ndarray, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean of ``first − second`` over rows, with its paired bootstrap interval.

    Where there are few distinct differences, a resample of N rows is drawn as multinomial counts of them. That is the
    same distribution as drawing rows one by one, and for correctness (differences −1, 0, 1) its cost does not grow
    with N.

    Args:
        first: score of each row under one model, (N,), for example 1.0 where it was right.
        second: score of the same rows, in the same order, under the other model, (N,).

    Raises:
        ValueError: the rows do not pair up, or there are none.
    """
    require_pairs(first, second, "N")
    values, counts = np.unique(first.astype(np.float64) - second, return_counts=True)
    random = np.random.default_rng(seed)
    sums = [_row_sums(values[None], counts, random, size) for size in _blocks(resamples, values.size, first.size)]
    return Interval(float(counts @ values) / first.size, *_percentiles(np.concatenate(sums) / first.size, confidence))


def _blocks(resamples: int, patterns: int, n: int) -> Iterator[int]:
    """Resamples that are drawn at once."""
    most = max(1, BLOCK // (patterns if patterns <= FEW else n))
    return (min(most, resamples - start) for start in range(0, resamples, most))


def _row_sums(patterns: np.ndarray, counts: np.ndarray, random: np.random.Generator, size: int) -> np.ndarray:
    """Sums over resampled rows: of each of ``size`` resamples and each seed, (R, S), of distinct rows (S, P)."""
    n = int(counts.sum())
    if counts.size <= FEW:
        return random.multinomial(n, counts / n, size=size) @ patterns.T
    rows, drawn = np.repeat(patterns, counts, axis=1), random.integers(n, size=(size, n))
    return np.stack([row[drawn].sum(axis=1) for row in rows], axis=1)


def quality_difference(
    first: np.ndarray, second: np.ndarray, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """``paired_difference`` of scores (N,), with an interval that allows for what was not seen.

    A score is 1 where an answer is right, and 0 where it is as good as one that is given without reading: correctness,
    or 1 − (error)² in standard deviations. Where no row of N differs, every resample agrees, and a plain bootstrap
    would be certain after forty rows. So the resamples are taken of N + 2 rows: each model wins one more, as in Bonett
    & Price 2012, *Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired Data*. It
    matters where N is small only: N equal rows give about ± 3 / N at 95 %.
    """
    measured = paired_difference(first, second, resamples=1).measured
    _, low, high = paired_difference(
        np.append(first, [1.0, 0.0]),
        np.append(second, [0.0, 1.0]),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    return Interval(measured, min(low, measured), max(high, measured))


def quality_difference_over_seeds(
    first: np.ndarray, second: np.ndarray, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean over seeds and rows of ``first − second``, with an interval that holds for other rows and other seeds.

    A recipe that is run with S seeds gives S pairs of models, all measured on the same N rows. Rows and seeds are
    resampled independently, and an entry counts as often as its row times as its seed was drawn: the bootstrap of
    crossed factors of Owen 2007, *The Pigeonhole Bootstrap*. Of the S seeds S − 1 are drawn, as in McCarthy & Snowden
    1985, *The Bootstrap and Finite Population Sampling*: S draws of so few would show (S − 1) / S of the variance
    between them. With two seeds the interval still rests on a single difference, and is an indication. As in
    ``quality_difference``, each model of a pair gets one more row that only it has right.

    Args:
        first: scores (S, N), as in ``quality_difference``, of one model of each seed.
        second: scores (S, N) of the other, with the same seeds and rows.

    Raises:
        ValueError: the rows do not pair up, or there are none.
    """
    require_pairs(first, second, "SN")
    seeds, n = first.shape
    if seeds == 1:
        return quality_difference(first[0], second[0], confidence=confidence, resamples=resamples, seed=seed)
    difference = first.astype(np.float64) - second
    unseen = np.tile([1.0, -1.0], (seeds, 1))
    patterns, counts = np.unique(np.hstack([difference, unseen]), axis=1, return_counts=True)
    random = np.random.default_rng(seed)
    samples: list[np.ndarray] = []
    for size in _blocks(resamples, patterns.shape[1], n + 2):
        sums = _row_sums(patterns, counts, random, size)
        drawn = random.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=size)
        samples.append((sums * drawn).sum(axis=1) / ((n + 2) * (seeds - 1)))
    measured = float(difference.mean())
    low, high = _percentiles(np.concatenate(samples), confidence)
    return Interval(measured, min(low, measured), max(high, measured))


def ratio_of_sums(
    numerator: np.ndarray,
    denominator: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Sum of ``numerator`` over sum of ``denominator``, with its paired bootstrap interval.

    Args:
        numerator: of each row, (N,), and ``denominator`` of the same rows, above zero in sum.
        groups: what rows belong to, (N,), such as their documents: those of one are drawn together, since they are not
            independent. ``None``: each row is by itself.

    Raises:
        ValueError: the rows do not pair up, or there are none.
    """
    require_pairs(numerator, denominator, "N")
    _, places = np.unique(np.arange(len(numerator)) if groups is None else groups, return_inverse=True)
    sums = np.stack([np.bincount(places, weights) for weights in (numerator, denominator)])
    random, count = np.random.default_rng(seed), sums.shape[1]
    ratios = []
    for size in _blocks(resamples, FEW + 1, count):
        drawn = random.integers(count, size=(size, count))
        above, below = (row[drawn].sum(axis=1) for row in sums)
        ratios.append(above / below)
    measured = float(sums[0].sum() / sums[1].sum())
    low, high = _percentiles(np.concatenate(ratios), confidence)
    return Interval(measured, min(low, measured), max(high, measured))


def median(rounds: Sequence[float], *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Median over rounds (N,) with its bootstrap interval.

    Raises:
        ValueError: there are no rounds.
    """
    values = np.asarray(rounds, dtype=np.float64)
    if values.size == 0:
        raise ValueError("median: needs at least one round")
    index = np.random.default_rng(seed).integers(values.size, size=(resamples, values.size))
    return Interval(float(np.median(values)), *_percentiles(np.median(values[index], axis=-1), confidence))


def ratio_of_medians(
    numerator: Sequence[float],
    denominator: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Median of ``numerator`` over median of ``denominator``, with a bootstrap interval over rounds.

    Round i of both is resampled together: rounds are interleaved in time, so what slows the machine slows both. With a
    handful of rounds the interval says how far they spread, and little about days on which the machine was busier.

    Args:
        numerator: one timing per round, (N,).
        denominator: the other's timing in the same rounds, (N,), above zero.

    Raises:
        ValueError: the rounds do not pair up, or there are none, or a timing is not above zero.
    """
    rounds = np.array([numerator, denominator], dtype=np.float64)
    if rounds.size == 0 or not (rounds > 0).all():
        raise ValueError("ratio of medians: needs at least one round, each timing above zero")
    index = np.random.default_rng(seed).integers(rounds.shape[1], size=(resamples, rounds.shape[1]))
    medians = np.median(rounds[:, index], axis=-1)
    above, below = np.median(rounds, axis=-1)
    return Interval(float(above / below), *_percentiles(medians[0] / medians[1], confidence))

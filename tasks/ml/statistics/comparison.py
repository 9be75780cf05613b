"""What a way to train is worth against another: paired over seeds, with Student's intervals. S = seeds, N = rows.

Times, rates and ratios are compared as logarithms: twice as fast and half as fast are then equally far from no
difference, and no interval reaches below zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from tasks.ml.statistics import bootstrap


@dataclass(frozen=True)
class Estimate:
    """A measurement and the two ends of its confidence interval, ``None`` where one seed cannot tell."""

    measured: float
    low: float | None = None
    high: float | None = None


def mean(values: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Mean over seeds (S,) with Student's t interval (Student 1908): mean ± t(S − 1) · s / √S.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("mean: needs at least one value")
    middle = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(middle)
    degrees = len(values) - 1
    deviation = math.sqrt(math.fsum((value - middle) ** 2 for value in values) / degrees)
    half = float(stdtrit(degrees, (1 + confidence) / 2)) * deviation / math.sqrt(len(values))
    return Estimate(middle, middle - half, middle + half)


def ratio(values: Sequence[float], baseline: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Geometric mean of ``values / baseline`` (S,), with the t interval of its logarithm; pairs share a seed.

    Raises:
        ValueError: they do not pair up, there are none, or one is not above zero.
    """
    if len(values) != len(baseline) or not all(value > 0 for value in (*values, *baseline)):
        raise ValueError("ratio: needs as many values as baselines, all above zero")
    logarithms = [math.log(value / other) for value, other in zip(values, baseline, strict=True)]
    middle = mean(logarithms, confidence=confidence)
    low, high = (None if end is None else math.exp(end) for end in (middle.low, middle.high))
    return Estimate(math.exp(middle.measured), low, high)


def typical(values: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Geometric mean over seeds (S,) of times or rates, with the t interval of its logarithm.

    Raises:
        ValueError: there are none, or one is not above zero.
    """
    return ratio(values, [1.0] * len(values), confidence=confidence)


def of_scores(scores: Sequence[Sequence[float] | np.ndarray], *, confidence: float = 0.95) -> Estimate:
    """Mean over seeds of the mean of their rows' scores (S, N), whose interval ends at 1; and at 0, if no row has less.

    Raises:
        ValueError: there are no seeds.
    """
    found = mean([float(np.mean(rows)) for rows in scores], confidence=confidence)
    if found.low is None or found.high is None:
        return found
    lowest = 0.0 if min(float(np.min(rows)) for rows in scores) >= 0 else -math.inf
    return Estimate(found.measured, max(lowest, found.low), min(1.0, found.high))


@dataclass(frozen=True, eq=False)
class Trial:
    """One training run and what it came to."""

    seed: int
    samples_per_s: float
    """Rows over seconds of training, those at the start that compile or measure included."""
    training_s: float
    peak_memory_mb: float
    curve: tuple[tuple[float, float], ...]
    """Each evaluation: seconds of training before it, and quality on the selection split."""
    scores: tuple[float, ...]
    """(N,) How good the answers of the kept weights are, row by row of the selection split."""
    about: Mapping[str, Any]
    """Where, when and how it ran."""

    @property
    def quality(self) -> float:
        return sum(self.scores) / len(self.scores)

    def seconds_to(self, quality: float) -> float | None:
        """Seconds of training until the first evaluation at or above a quality; ``None`` if none was."""
        return next((seconds for seconds, reached in self.curve if reached >= quality), None)


@dataclass(frozen=True)
class Summary:
    """What a choice came to over its seeds; ratios and changes are against the baseline, on the seeds of both."""

    trials: tuple[Trial, ...]
    reached: int
    """Trials that reached the target."""
    seconds: Estimate | None
    """Seconds of training to the target; ``None`` unless every trial reached it, because a mean of those that did would
    flatter the choice."""
    sooner: Estimate | None
    """Baseline's seconds to the target over this choice's; ``None`` unless every trial of both reached it."""
    samples_per_s: Estimate
    faster: Estimate | None
    """Samples per second over the baseline's."""
    peak_memory_mb: float
    """The largest of all trials."""
    memory: Estimate | None
    """Peak memory over the baseline's."""
    quality: Estimate
    """Mean over seeds, with its interval over seeds."""
    better: Estimate | None
    """Quality minus the baseline's. The interval is over the rows of the selection split: it resamples them, each with
    its mean over the seeds."""


def summarize(trials: Sequence[Trial], baseline: Sequence[Trial], *, target: float) -> Summary:
    """Compares the trials of a choice with the baseline's; of the baseline itself, and without pairs, nothing is said.

    Raises:
        ValueError: there is no trial.
    """
    seconds = [trial.seconds_to(target) for trial in trials]
    reached = [one for one in seconds if one is not None]
    by_seed = {trial.seed: trial for trial in baseline}
    pairs = [(one, by_seed[one.seed]) for one in trials if by_seed.get(one.seed) not in (None, one)]
    sooner = [(other.seconds_to(target), one.seconds_to(target)) for one, other in pairs]
    all_reached = bool(pairs) and all(a is not None and b is not None for a, b in sooner)
    return Summary(
        trials=tuple(trials),
        reached=len(reached),
        seconds=typical(reached) if len(reached) == len(trials) else None,
        sooner=ratio([a for a, _ in sooner if a], [b for _, b in sooner if b]) if all_reached else None,
        samples_per_s=typical([trial.samples_per_s for trial in trials]),
        faster=_ratio(pairs, "samples_per_s"),
        peak_memory_mb=max(trial.peak_memory_mb for trial in trials),
        memory=_ratio(pairs, "peak_memory_mb"),
        quality=of_scores([trial.scores for trial in trials]),
        better=_quality_change(pairs),
    )


def _ratio(pairs: Sequence[tuple[Trial, Trial]], field: str) -> Estimate | None:
    if not pairs:
        return None
    return ratio([getattr(one, field) for one, _ in pairs], [getattr(other, field) for _, other in pairs])


def _quality_change(pairs: Sequence[tuple[Trial, Trial]]) -> Estimate | None:
    if not pairs:
        return None
    ours, theirs = (np.mean([trial.scores for trial in column], axis=0) for column in zip(*pairs, strict=True))
    return Estimate(*bootstrap.quality_difference(ours, theirs))

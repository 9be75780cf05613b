"""What a technique is worth: a model made with it beside one made without it, seed by seed. S = seeds, N = rows.

Quality is compared row by row on the selection split. Size and time are compared as ratios, seed by seed; times are of
rounds that both models took in turns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.ml import statistics
from tasks.ml.comparison import Estimate, mean, ratio
from tasks.ml.timing import Pace

SLIGHT = 0.1
"""A ratio that is nearer to 1 than this counts as no difference. The same graph in two processes was up to 9 % apart in
time, and models of the same time that pruning by measured times chose were as far apart in size."""
CERTAINTY = 0.99
"""Of intervals over rounds. Three dozen techniques are timed: at 95 % some would differ by chance."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One model, on the selection split."""

    seed: int
    correct: np.ndarray
    """(N,) 1.0 where its label is the true one."""
    agrees: np.ndarray
    """(N,) 1.0 where its label is the teacher's."""
    size_mb: float
    pace: Pace
    about: Mapping[str, Any]
    """Where, when and how it was measured."""

    def metrics(self) -> dict[str, float]:
        """Its numbers, by names with units in them."""
        return {
            "accuracy": float(self.correct.mean()),
            "agreement_with_teacher": float(self.agrees.mean()),
            "size_mb": self.size_mb,
            "latency_p50_ms": self.pace.latency_p50_ms,
            "throughput_per_s": self.pace.throughput_per_s,
        }


def read(directory: Path, seed: int) -> Measured:
    """Reads what ``appraise`` left of one model."""
    measured = json.loads((directory / "appraisal.json").read_text(encoding="utf-8"))
    with pa.memory_map(str(directory / "selection.arrow")) as file:
        rows = pa.ipc.open_file(file).read_all()
        correct = rows["correct_candidate"].to_numpy().astype(np.float64)
        agrees = (rows["prediction_candidate"].to_numpy() == rows["prediction_teacher"].to_numpy()).astype(np.float64)
    return Measured(
        seed=seed,
        correct=correct,
        agrees=agrees,
        size_mb=measured["size_mb"],
        pace=Pace(tuple(measured["latency_p50_rounds_ms"]), (measured["throughput_per_s"],)),
        about={name: measured[name] for name in ("cpu_model", "kernels", "threads", "provider", "teacher_accuracy")},
    )


@dataclass(frozen=True)
class Summary:
    """What the models of one recipe came to: means over seeds, with Student's intervals where there are several."""

    accuracy: Estimate
    agreement: Estimate
    size_mb: Estimate
    latency_p50_ms: Estimate
    throughput_per_s: Estimate


def summarize(models: Sequence[Measured]) -> Summary:
    """Averages over seeds.

    Raises:
        ValueError: there are no models.
    """
    return Summary(
        accuracy=mean([float(one.correct.mean()) for one in models]),
        agreement=mean([float(one.agrees.mean()) for one in models]),
        size_mb=mean([one.size_mb for one in models]),
        latency_p50_ms=mean([one.pace.latency_p50_ms for one in models]),
        throughput_per_s=mean([one.pace.throughput_per_s for one in models]),
    )


@dataclass(frozen=True)
class Effect:
    """What a technique changes. Differences are of fractions of rows, ratios are above 1 where the technique helps."""

    accuracy: Estimate
    """With it minus without it, with an interval over rows, and over seeds where there are several."""
    agreement: Estimate
    """Of labels with the teacher's, likewise."""
    smaller: Estimate
    """Size without it over size with it."""
    faster: Estimate
    """p50 of one sentence without it over p50 with it: the median of what each round came to."""
    throughput: Estimate
    """Rows per second with it over rows per second without it, likewise."""

    def signs(self) -> dict[str, int]:
        """1 where it is shown to help, −1 where it is shown to harm, else 0, by quantity."""
        quality = {"accuracy": self.accuracy, "agreement": self.agreement}
        ratios = {"size": self.smaller, "latency": self.faster, "throughput": self.throughput}
        return {name: _sign(one, neutral=0.0, slight=0.0) for name, one in quality.items()} | {
            name: _sign(one, neutral=1.0, slight=SLIGHT) for name, one in ratios.items()
        }


def _sign(estimate: Estimate, *, neutral: float, slight: float) -> int:
    """On which side of no difference an estimate is for sure: with all of its interval, where it has one, and by more
    than a slight difference."""
    middle = estimate.measured
    low, high = (middle if end is None else end for end in (estimate.low, estimate.high))
    return int(min(low, middle - slight) > neutral) - int(max(high, middle + slight) < neutral)


def compare(used: Sequence[Measured], spared: Sequence[Measured]) -> Effect:
    """Compares models made with a technique with models made without it, on the seeds of both.

    Intervals of times are over rounds where there is one seed, else over seeds.

    Raises:
        ValueError: no seed is in both, their rows differ, or rounds do not pair up.
    """
    by_seed = {one.seed: one for one in spared}
    pairs = [(one, by_seed[one.seed]) for one in used if one.seed in by_seed]
    if not pairs:
        raise ValueError("compare: no seed was measured with and without the technique")

    def difference(name: str) -> Estimate:
        first, second = (np.stack([getattr(one, name) for one in side]) for side in zip(*pairs, strict=True))
        return Estimate(*statistics.accuracy_difference_over_seeds(first, second))

    def times(above: Sequence[Sequence[float]], below: Sequence[Sequence[float]]) -> Estimate:
        if [len(rounds) for rounds in above] != [len(rounds) for rounds in below]:
            raise ValueError("compare: rounds do not pair up: models were not timed in turns")
        by_rounds = [
            statistics.median([one / other for one, other in zip(*pair, strict=True)], confidence=CERTAINTY)
            for pair in zip(above, below, strict=True)
        ]
        if len(by_rounds) == 1:
            return Estimate(*by_rounds[0])
        return ratio([one.measured for one in by_rounds], [1.0] * len(by_rounds))

    ours, theirs = ([one.pace for one in side] for side in zip(*pairs, strict=True))
    return Effect(
        accuracy=difference("correct"),
        agreement=difference("agrees"),
        smaller=ratio([other.size_mb for _, other in pairs], [one.size_mb for one, _ in pairs]),
        faster=times([pace.latency_rounds_ms for pace in theirs], [pace.latency_rounds_ms for pace in ours]),
        throughput=times(
            [pace.throughput_rounds_per_s for pace in ours], [pace.throughput_rounds_per_s for pace in theirs]
        ),
    )

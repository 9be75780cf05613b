"""What a technique is worth: a model made with it beside one made without it, seed by seed. S = seeds, N = rows.

Quality is compared row by row on the selection split. Size and time are compared as ratios, seed by seed; times are of
rounds that both models took in turns. Dozens of techniques are compared in several ways each, so that some would differ
by chance: what counts as shown is decided for all of them together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.ml.runtime.timing import Pace
from tasks.ml.statistics import contrasts, multiplicity
from tasks.ml.statistics.comparison import Estimate, mean, of_scores, typical
from tasks.ml.statistics.contrasts import Contrast

SLIGHT = 0.1
"""A ratio that is nearer to 1 than this counts as no difference. The same graph in two processes was up to 9 % apart in
time, and models of the same time that pruning by measured times chose were as far apart in size."""
LEVEL = 0.05
"""Most that the chance of any false claim may be, of all comparisons of an ablation together."""
UNCERTAIN = ("quality", "agreement", "faster", "throughput")
"""What is compared with chance in it."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One model, on the selection split."""

    seed: int
    scores: np.ndarray
    """(N,) How good its answers are, by the problem's metric."""
    agrees: np.ndarray
    """(N,) 1.0 where its answer is the teacher's; NaN where that cannot be told."""
    size_mb: float
    pace: Pace
    about: Mapping[str, Any]
    """Where, when and how it was measured."""

    @property
    def is_told(self) -> np.ndarray:
        """(N,) Of which rows it is told whether it agrees with the teacher."""
        return ~np.isnan(self.agrees)

    def metrics(self) -> dict[str, float]:
        """Its numbers, by names with units in them."""
        return {
            "quality": float(self.scores.mean()),
            **({"agreement_with_teacher": float(np.nanmean(self.agrees))} if self.is_told.any() else {}),
            "size_mb": self.size_mb,
            "latency_p50_ms": self.pace.latency_p50_ms,
            "throughput_per_s": self.pace.throughput_per_s,
        }


def read(directory: Path, seed: int) -> Measured:
    """Reads what ``appraise`` left of one model."""
    measured = json.loads((directory / "appraisal.json").read_text(encoding="utf-8"))
    with pa.memory_map(str(directory / "selection.arrow")) as file:
        rows = pa.ipc.open_file(file).read_all()
        scores = rows["score_candidate"].to_numpy().astype(np.float64)
        agrees = rows["agrees_candidate"].to_numpy().astype(np.float64)
    return Measured(
        seed=seed,
        scores=scores,
        agrees=agrees,
        size_mb=measured["size_mb"],
        pace=Pace(tuple(measured["latency_p50_rounds_ms"]), (measured["throughput_per_s"],)),
        about={name: measured[name] for name in ("cpu_model", "kernels", "threads", "provider", "teacher_quality")},
    )


@dataclass(frozen=True)
class Summary:
    """What the models of one recipe came to: means over seeds, with Student's intervals where there are several."""

    quality: Estimate
    agreement: Estimate | None
    """``None`` where it is told of no row."""
    size_mb: Estimate
    latency_p50_ms: Estimate
    throughput_per_s: Estimate


def summarize(models: Sequence[Measured]) -> Summary:
    """Averages over seeds.

    Raises:
        ValueError: there are no models.
    """
    return Summary(
        quality=of_scores([one.scores for one in models]),
        agreement=of_scores([one.agrees[one.is_told] for one in models]) if _told(models).any() else None,
        size_mb=mean([one.size_mb for one in models]),
        latency_p50_ms=mean([one.pace.latency_p50_ms for one in models]),
        throughput_per_s=mean([one.pace.throughput_per_s for one in models]),
    )


def _told(models: Sequence[Measured]) -> np.ndarray:
    """(N,) Rows of which it is told of each of these models whether it agrees with the teacher."""
    return np.logical_and.reduce([one.is_told for one in models])


@dataclass(frozen=True)
class Claim:
    """How sure one comparison is."""

    p_value: float
    """Two-sided, that there is no difference."""
    adjusted_p_value: float
    """By Holm, for the number of comparisons."""
    confidence: float
    """Of its interval: at Holm's level."""


@dataclass(frozen=True)
class Effect:
    """What a technique changes. Differences are of fractions of rows, ratios are above 1 where the technique helps."""

    quality: Estimate
    """With it minus without it, with an interval over rows, and over seeds where there are several."""
    agreement: Estimate | None
    """Of answers with the teacher's, likewise, on rows of which that is told of both; ``None`` where there is none."""
    smaller: Estimate
    """Size without it over size with it; of several seeds with the least and the largest."""
    faster: Estimate
    """p50 of one sentence without it over p50 with it: the median of what each round came to, with an interval over
    rounds that holds those of all seeds."""
    throughput: Estimate
    """Rows per second with it over rows per second without it, likewise."""
    claims: Mapping[str, Claim]
    """Of each of ``UNCERTAIN`` that was compared."""

    def signs(self) -> dict[str, int]:
        """1 where it is shown to help, −1 where it is shown to harm, else 0, by quantity."""
        shown = {name: claim.adjusted_p_value <= LEVEL for name, claim in self.claims.items()}
        return {
            "quality": shown["quality"] * _sign(self.quality, neutral=0.0, slight=0.0),
            "agreement": shown["agreement"] * _sign(self.agreement, neutral=0.0, slight=0.0) if self.agreement else 0,
            "size": _sign(self.smaller, neutral=1.0, slight=SLIGHT),
            "latency": shown["faster"] * _sign(self.faster, neutral=1.0, slight=SLIGHT),
            "throughput": shown["throughput"] * _sign(self.throughput, neutral=1.0, slight=SLIGHT),
        }


def _sign(estimate: Estimate, *, neutral: float, slight: float) -> int:
    """On which side of no difference an estimate is for sure: with all of its interval, where it has one, and by more
    than a slight difference."""
    middle = estimate.measured
    low, high = (middle if end is None else end for end in (estimate.low, estimate.high))
    return int(min(low, middle - slight) > neutral) - int(max(high, middle + slight) < neutral)


def compare(models: Mapping[str, tuple[Sequence[Measured], Sequence[Measured]]]) -> dict[str, Effect]:
    """Compares models made with each technique with models made without it, on the seeds of both.

    All comparisons are judged together: Holm's procedure allows for their number. Sizes are not among them, for they
    are what they are.

    Args:
        models: with and without each technique, by its name.

    Raises:
        ValueError: no seed is in both, their rows differ, or rounds do not pair up.
    """
    pairs = {name: _paired(*both) for name, both in models.items()}
    found = {(name, what): one for name, pair in pairs.items() for what, one in _contrasts(pair).items()}
    p_values = [one.p_value for one in found.values()]
    levels = dict(zip(found, multiplicity.holm_levels(p_values, LEVEL), strict=True))
    adjusted = dict(zip(found, multiplicity.holm(p_values), strict=True))
    estimates: dict[str, dict[str, Any]] = {name: dict.fromkeys(UNCERTAIN) for name in pairs}
    claims: dict[str, dict[str, Claim]] = {name: {} for name in pairs}
    for (name, what), one in found.items():
        level = levels[name, what]
        estimates[name][what] = one.interval(level)
        claims[name][what] = Claim(one.p_value, adjusted[name, what], 1 - level)
    return {
        name: Effect(**estimates[name], smaller=_smaller(pair), claims=claims[name]) for name, pair in pairs.items()
    }


_Pairs = list[tuple[Measured, Measured]]


def _paired(used: Sequence[Measured], spared: Sequence[Measured]) -> _Pairs:
    by_seed = {one.seed: one for one in spared}
    pairs = [(one, by_seed[one.seed]) for one in used if one.seed in by_seed]
    if not pairs:
        raise ValueError("compare: no seed was measured with and without the technique")
    return pairs


def _contrasts(pairs: _Pairs) -> dict[str, Contrast]:
    def rows(name: str, told: Any = slice(None)) -> Contrast:
        first, second = (np.stack([getattr(one, name)[told] for one in side]) for side in zip(*pairs, strict=True))
        return contrasts.of_rows(first, second)

    def rounds(above: Sequence[Sequence[float]], below: Sequence[Sequence[float]]) -> Contrast:
        if [len(one) for one in above] != [len(one) for one in below]:
            raise ValueError("compare: rounds do not pair up: models were not timed in turns")
        return contrasts.of_rounds(
            [[a / b for a, b in zip(*pair, strict=True)] for pair in zip(above, below, strict=True)]
        )

    ours, theirs = ([one.pace for one in side] for side in zip(*pairs, strict=True))
    told = _told([one for pair in pairs for one in pair])
    return {
        "quality": rows("scores"),
        **({"agreement": rows("agrees", told)} if told.any() else {}),
        "faster": rounds([pace.latency_rounds_ms for pace in theirs], [pace.latency_rounds_ms for pace in ours]),
        "throughput": rounds(
            [pace.throughput_rounds_per_s for pace in ours], [pace.throughput_rounds_per_s for pace in theirs]
        ),
    }


def _smaller(pairs: _Pairs) -> Estimate:
    """Geometric mean of the ratios of sizes, and the least and the largest where there are several."""
    ratios = [other.size_mb / one.size_mb for one, other in pairs]
    return replace(typical(ratios), **({"low": min(ratios), "high": max(ratios)} if len(ratios) > 1 else {}))

"""How much of its quality the shipped model lost against its teacher, on the same rows."""

from __future__ import annotations

import math

import numpy as np

from tasks.contracts.values import Check, CheckStatus, Parting
from tasks.ml.proof.decision import as_check, decide
from tasks.ml.statistics import bootstrap, discordance
from tasks.ml.statistics.bootstrap import Interval


def of_hits(teacher: np.ndarray, shipped: np.ndarray, *, limit: float, confidence: float) -> Check:
    """Accuracy lost, from correctness (N,), 0 or 1, of both models on the same rows; at most ``limit`` may be."""
    interval = bootstrap.quality_difference(teacher, shipped, confidence=confidence)
    counts = discordance.count(teacher, shipped)
    check, rule_out = _decided("accuracy", interval, counts.n, limit=limit, confidence=confidence)
    needed = None
    if check.status is CheckStatus.UNDECIDABLE:
        needed = discordance.rows_needed(*counts, rule_out=rule_out, confidence=confidence)
    parting = Parting(
        lost=counts.lost,
        gained=counts.gained,
        mcnemar_p=discordance.mcnemar(counts.lost, counts.gained),
        margin=limit,
        noninferiority_p=discordance.noninferiority(*counts, margin=limit),
        confidence=confidence,
        largest_drop=discordance.largest_drop(*counts, confidence=confidence),
        rows_needed=needed,
    )
    return _undecided(check, needed, rule_out).model_copy(update={"parting": parting})


def of_scores(teacher: np.ndarray, shipped: np.ndarray, *, metric: str, limit: float, confidence: float) -> Check:
    """Quality lost, from any scores (N,) of both models on the same rows; at most ``limit`` may be."""
    interval = bootstrap.quality_difference(teacher, shipped, confidence=confidence)
    check, rule_out = _decided(metric, interval, len(teacher), limit=limit, confidence=confidence)
    return _undecided(check, rows_needed(interval, len(teacher), rule_out=rule_out), rule_out)


def rows_needed(interval: Interval, n: int, *, rule_out: float) -> int | None:
    """About how many rows would rule out a value, if they are like these n; ``None`` if no number is enough."""
    distance = abs(interval.measured - rule_out)
    half = max(interval.high - interval.measured, interval.measured - interval.low)
    # The half width of an interval falls with the root of the number of rows.
    enough = n * (half / distance) * (half / distance) if distance else math.inf
    return math.ceil(enough) if enough <= discordance.MOST_ROWS else None


def _decided(metric: str, interval: Interval, n: int, *, limit: float, confidence: float) -> tuple[Check, float]:
    """The check, and the loss that would have to be ruled out for another answer."""
    near, far = limit - abs(limit), limit + abs(limit)
    status = decide(interval, limit, "at_most", band=(near, far))
    measured = interval.measured
    moved = f"fell by {100 * measured:.2f}" if measured >= 0 else f"rose by {-100 * measured:.2f}"
    explanation = (
        f"{metric} {moved} points on {n} paired test rows ({100 * confidence:g} % interval of the loss "
        f"{_points(interval.low)} to {_points(interval.high)}); at most {100 * limit:g} may be lost"
    )
    check = as_check("quality_drop", interval, limit, "at_most", n, status, explanation)
    return check.model_copy(update={"metric": metric}), far if measured <= limit else near


def _undecided(check: Check, needed: int | None, rule_out: float) -> Check:
    """The check, which says how many rows would do if these do not."""
    if check.status is not CheckStatus.UNDECIDABLE:
        return check
    more = f"; undecidable at this n: {enough(needed)} to rule out a loss of {100 * rule_out:g}"
    return check.model_copy(update={"explanation": check.explanation + more})


def enough(rows: int | None) -> str:
    return "no number of rows is enough" if rows is None else f"at least {rows:,} rows are needed"


def _points(fraction: float) -> str:
    """A fraction in points, with the sign that typography has for it."""
    return f"{100 * fraction:.2f}".replace("-", "−")

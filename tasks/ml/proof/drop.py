"""How much of its quality the shipped model lost against its teacher, on the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tasks.contracts.values import Check, CheckStatus, Parting
from tasks.ml.proof.decision import as_check, decide
from tasks.ml.statistics import bootstrap, discordance
from tasks.ml.statistics.bootstrap import Interval


def of_hits(teacher: np.ndarray, shipped: np.ndarray, *, limit: float, confidence: float) -> Check:
    """Accuracy lost, from correctness (N,), 0 or 1, of both models on the same rows; at most ``limit`` may be."""
    interval = bootstrap.quality_difference(teacher, shipped, confidence=confidence)
    counts = discordance.count(teacher, shipped)
    check, needed = _weighed(
        "accuracy",
        interval,
        counts.n,
        limit=limit,
        confidence=confidence,
        needed=lambda rule_out: discordance.rows_needed(*counts, rule_out=rule_out, confidence=confidence),
    )
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
    return check.model_copy(update={"parting": parting})


def of_scores(teacher: np.ndarray, shipped: np.ndarray, *, metric: str, limit: float, confidence: float) -> Check:
    """Quality lost, from any scores (N,) of both models on the same rows; at most ``limit`` may be."""
    interval = bootstrap.quality_difference(teacher, shipped, confidence=confidence)
    n = len(teacher)
    check, _ = _weighed(
        metric,
        interval,
        n,
        limit=limit,
        confidence=confidence,
        needed=lambda rule_out: rows_needed(interval, n, rule_out=rule_out),
    )
    return check


def rows_needed(interval: Interval, n: int, *, rule_out: float) -> int | None:
    """About how many rows would rule out a value, if they are like these n; ``None`` if no number is enough."""
    distance = abs(interval.measured - rule_out)
    half = max(interval.high - interval.measured, interval.measured - interval.low)
    # The half width of an interval falls with the root of the number of rows.
    enough = n * (half / distance) * (half / distance) if distance else math.inf
    return math.ceil(enough) if enough <= discordance.MOST_ROWS else None


def _weighed(
    metric: str,
    interval: Interval,
    n: int,
    *,
    limit: float,
    confidence: float,
    needed: Callable[[float], int | None],
) -> tuple[Check, int | None]:
    """The check, and how many rows would do where these do not.

    Args:
        needed: rows that would rule out a loss.
    """
    near, far = limit - abs(limit), limit + abs(limit)
    status = decide(interval, limit, "at_most", band=(near, far))
    measured, rows = interval.measured, None
    moved = f"fell by {100 * measured:.2f}" if measured >= 0 else f"rose by {-100 * measured:.2f}"
    explanation = (
        f"{metric} {moved} points on {n} paired test rows ({100 * confidence:g} % interval of the loss "
        f"{_points(interval.low)} to {_points(interval.high)}); at most {100 * limit:g} may be lost"
    )
    if status is CheckStatus.UNDECIDABLE:
        rule_out = far if measured <= limit else near
        rows = needed(rule_out)
        shown = f"less than {100 * far:g}" if measured <= limit else f"more than {100 * near:g}"
        explanation += f"; undecidable at this n: {enough(rows)} to show that {shown} points are lost"
    check = as_check("quality_drop", interval, limit, "at_most", n, status, explanation)
    return check.model_copy(update={"metric": metric}), rows


def enough(rows: int | None) -> str:
    return "no number of rows is enough" if rows is None else f"at least {rows:,} rows are needed"


def _points(fraction: float) -> str:
    """A fraction in points, with the sign that typography has for it."""
    return f"{100 * fraction:.2f}".replace("-", "−")

"""How much of its quality the shipped model lost against its teacher, on the same rows."""

from __future__ import annotations

import numpy as np

from tasks.contracts.values import Check, CheckStatus, Parting
from tasks.ml.proof.decision import as_check, decide
from tasks.ml.statistics import bootstrap, discordance


def of_hits(teacher: np.ndarray, shipped: np.ndarray, *, limit: float, confidence: float) -> Check:
    """Accuracy lost, from correctness (N,), 0 or 1, of both models on the same rows; at most ``limit`` may be."""
    interval = bootstrap.accuracy_difference(teacher, shipped, confidence=confidence)
    counts = discordance.count(teacher, shipped)
    near, far = limit - abs(limit), limit + abs(limit)
    status = decide(interval, limit, "at_most", band=(near, far))
    measured = interval.measured
    moved = f"fell by {100 * measured:.2f}" if measured >= 0 else f"rose by {-100 * measured:.2f}"
    explanation = (
        f"accuracy {moved} points on {counts.n} paired test rows ({100 * confidence:g} % interval of the loss "
        f"{_points(interval.low)} to {_points(interval.high)}); at most {100 * limit:g} may be lost"
    )
    needed = None
    if status is CheckStatus.UNDECIDABLE:
        rule_out = far if measured <= limit else near
        needed = discordance.rows_needed(*counts, rule_out=rule_out, confidence=confidence)
        explanation += f"; undecidable at this n: {_needed(needed)} to rule out a loss of {100 * rule_out:g}"
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
    return as_check("quality_drop", interval, limit, "at_most", counts.n, status, explanation, parting)


def _needed(rows: int | None) -> str:
    return "no number of rows is enough" if rows is None else f"at least {rows:,} rows are needed"


def _points(fraction: float) -> str:
    """A fraction in points, with the sign that typography has for it."""
    return f"{100 * fraction:.2f}".replace("-", "−")

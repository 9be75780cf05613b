"""How a check is decided under uncertainty. Why this is the rule: ``infra/decisions/0002-verdict-rule.md``."""

from __future__ import annotations

from typing import Literal

from tasks.contracts.values import Check, CheckStatus
from tasks.ml.statistics.bootstrap import Interval

Direction = Literal["at_most", "at_least"]


def decide(interval: Interval, limit: float, direction: Direction, *, band: tuple[float, float]) -> CheckStatus:
    """Passed or failed by the measured value, if its interval rules out a clearly different answer.

    Args:
        band: a value clearly below the limit and one clearly above it. What is measured below the limit counts once the
            interval ends below the upper one; what is measured above, once it begins above the lower one.
    """
    measured, low, high = interval
    met = measured <= limit if direction == "at_most" else measured >= limit
    below = met if direction == "at_most" else not met
    if not (high < band[1] if below else low > band[0]):
        return CheckStatus.UNDECIDABLE
    return CheckStatus.PASSED if met else CheckStatus.FAILED


def above_nothing(gain: Interval) -> CheckStatus:
    """Passed if a gain is surely above zero, failed if none was measured."""
    if gain.low > 0:
        return CheckStatus.PASSED
    return CheckStatus.FAILED if gain.measured <= 0 else CheckStatus.UNDECIDABLE


def as_check(
    name: str,
    interval: Interval,
    limit: float,
    direction: Direction,
    n: int,
    status: CheckStatus,
    explanation: str,
) -> Check:
    return Check(
        name=name,
        **interval._asdict(),
        limit=limit,
        direction=direction,
        n=n,
        status=status,
        explanation=explanation,
    )

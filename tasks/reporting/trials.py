"""What a search tried and what came of it, as values; and which of them is best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from tasks.contracts.base import Contract
from tasks.contracts.values import Outcome, Scorecard, StageResult
from tasks.ml.statistics import pareto


class Minimize(StrEnum):
    LATENCY = "latency"
    SIZE = "size"


class State(StrEnum):
    COMPLETE = "complete"
    GIVEN_UP = "given up"
    FAILED = "failed"


FIELDS = {Minimize.LATENCY: ("latency_p50_ms", "ms"), Minimize.SIZE: ("size_mb", "MB")}
"""Field of the scorecard and unit of what is made small."""


class Limits(Contract):
    """What a model must keep to, and the teacher that it is held against. Without a limit: infinity."""

    max_drop: float
    """Quality that may be lost on the selection split, a fraction."""
    max_mb: float = math.inf
    max_ms: float = math.inf
    """p50 of one sentence."""
    teacher_quality: float
    """On the selection split."""
    rows: int
    """Of the selection split."""


class Trial(Contract):
    """What one variation came to."""

    number: int
    """Counts from 1, in the order in which they were asked for."""
    changes: dict[str, Any]
    """Fields of the recipe by their path."""
    state: State
    reason: str = ""
    """Why it was given up or failed."""
    run_id: str
    """MLflow run."""
    seconds: float
    stages: tuple[StageResult, ...] = ()
    forecast_mb: float | None = None
    """Weights as its shapes foretold them."""

    @property
    def card(self) -> Scorecard | None:
        """What was measured on the real runtime, if it came so far."""
        return self.stages[-1].scorecard if self.state is State.COMPLETE else None

    def drop(self, limits: Limits) -> float | None:
        """Quality lost against the teacher on the selection split, a fraction."""
        return None if self.card is None or self.card.quality is None else limits.teacher_quality - self.card.quality

    def cost(self, minimize: Minimize) -> float | None:
        """In ms or MB."""
        found: float | None = None if self.card is None else getattr(self.card, FIELDS[minimize][0])
        return found

    def objectives(self, limits: Limits, minimize: Minimize) -> tuple[float, float]:
        """What the sampler is to make small; of a complete trial."""
        drop, cost = self.drop(limits), self.cost(minimize)
        assert drop is not None
        assert cost is not None
        return drop, cost

    def excess(self, limits: Limits) -> dict[str, float]:
        """How far each measure of a complete trial is beyond its limit: points of quality as a fraction, others as a
        fraction of the limit. Zero or less where it keeps to it; minus infinity where there is none."""
        drop, size, latency = self.drop(limits), self.cost(Minimize.SIZE), self.cost(Minimize.LATENCY)
        assert drop is not None
        assert size is not None
        assert latency is not None
        return {
            "drop": drop - limits.max_drop,
            "size": size / limits.max_mb - 1 if math.isfinite(limits.max_mb) else -math.inf,
            "latency": latency / limits.max_ms - 1 if math.isfinite(limits.max_ms) else -math.inf,
        }

    def keeps_to(self, limits: Limits) -> bool:
        """Whether everything measured is within its limit."""
        return self.state is State.COMPLETE and all(value <= 0 for value in self.excess(limits).values())

    def metrics(self, limits: Limits) -> dict[str, float]:
        """Numbers to compare trials by."""
        found = {} if self.card is None else self.card.metrics()
        drop = self.drop(limits)
        more = {"quality_drop": drop, "forecast_size_mb": self.forecast_mb}
        return found | {name: value for name, value in more.items() if value is not None}


class Finalist(Contract):
    """A trial that the test split has judged."""

    trial: Trial
    outcome: Outcome
    p_value: float
    """Of the quality check: that the loss is as large as what would clearly be too much."""
    adjusted_p_value: float
    """By Holm, for the number of finalists."""
    confidence: float
    """Of its intervals."""


class Search(Contract):
    """What was looked for, and what it came to."""

    run_id: str
    """MLflow parent run."""
    recipe: str
    base_model: str
    minimize: Minimize
    limits: Limits
    baseline: Scorecard
    """The teacher on the selection split, timed eagerly."""
    space: dict[str, list[Any]]
    trials: tuple[Trial, ...]
    finalists: tuple[Finalist, ...]
    confidence: float

    @property
    def complete(self) -> list[Trial]:
        """The trials that were measured to the end: those that were compared."""
        return [trial for trial in self.trials if trial.state is State.COMPLETE]

    @property
    def winner(self) -> Finalist | None:
        """Of the finalists that passed, the one that costs least."""
        passed = [one for one in self.finalists if one.outcome.verdict.passed]
        return min(passed, key=lambda one: one.trial.cost(self.minimize) or math.inf, default=None)


def standing(trials: Sequence[Trial], limits: Limits, minimize: Minimize) -> list[Trial]:
    """The trials that keep to all limits on the selection split, the cheapest first."""
    able = [trial for trial in trials if trial.keeps_to(limits)]
    return sorted(able, key=lambda trial: (*reversed(trial.objectives(limits, minimize)), trial.number))


def best(trials: Sequence[Trial], limits: Limits, minimize: Minimize) -> Trial | None:
    """The first of ``standing``; while there is none, the one that is least beyond the limits."""
    if first := standing(trials, limits, minimize):
        return first[0]
    measured = [trial for trial in trials if trial.state is State.COMPLETE]
    return min(measured, key=lambda one: sum(max(0.0, x) for x in one.excess(limits).values()), default=None)


def front(search: Search) -> list[Trial]:
    """The trials that no other dominates in quality lost and cost."""
    measured = search.complete
    points = [trial.objectives(search.limits, search.minimize) for trial in measured]
    return sorted((measured[i] for i in pareto.front(points)), key=lambda one: one.cost(search.minimize) or 0)

"""Whether a variation can still be worth its price: what is known of it before and while it is made.

Each look costs next to nothing beside what comes after it: the size follows from shapes, and every stage has already
measured its model on the selection split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flows.recipe import Recipe
from tasks.contracts.values import Bundle, StageResult
from tasks.engine import store
from tasks.ml.statistics import pareto
from tasks.prune import WidthConfig
from tasks.reporting.trials import Limits, Minimize

STANDARD_ERRORS = 2.0
"""How far a measured loss may lie beyond what is allowed before it counts."""


class Forecast(NamedTuple):
    """What is known before anything is made; ``None`` where it is not."""

    size_mb: float | None
    latency_ms: float | None


class Rival(NamedTuple):
    """A variation that was measured to the end."""

    number: int
    drop: float
    cost: float
    """In MB or milliseconds: what the search makes small."""


def forecast(recipe: Recipe, teacher: Bundle) -> Forecast:
    """Foretells what can be foretold of a variation of the teacher."""
    from tasks.ml.latency import forecast as shapes

    width = recipe.pruning.width
    if not isinstance(width, WidthConfig) or recipe.distillation.keep_hidden < 1:  # what is cut depends on weights
        return Forecast(size_mb=None, latency_ms=None)
    num_bytes = shapes.num_bytes(
        store.path(teacher.digest),
        teacher.problem,
        layers=recipe.distillation.layers,
        keep_heads=width.keep_heads,
        keep_ffn=width.keep_ffn,
        keep_vocabulary=recipe.pruning.keep_vocabulary,
        embedding_rank=recipe.distillation.embedding_rank,
        plan=recipe.quantization.for_plan(),
    )
    return Forecast(size_mb=num_bytes / 1e6, latency_ms=None)


class Prospects:
    """Looks at a variation before it is begun and after each of its stages."""

    def __init__(self, limits: Limits, foretold: Forecast, rivals: Sequence[Rival], minimize: Minimize) -> None:
        self.limits, self.foretold, self.rivals = limits, foretold, rivals
        self.cost = foretold.size_mb if minimize is Minimize.SIZE else foretold.latency_ms
        self.drop_error = 0.0

    def before(self) -> str:
        """Why a variation is not worth beginning; empty if it is."""
        size, latency = self.foretold
        if size is not None and size > self.limits.max_mb:
            return f"its weights would take {size:.2f} MB, and {self.limits.max_mb:.2f} are allowed"
        if latency is not None and latency > self.limits.max_ms:
            return f"one sentence would take {latency:.2f} ms, and {self.limits.max_ms:.2f} are allowed"
        return ""

    def after(self, result: StageResult) -> str:
        """Why a variation is not worth going on with after a stage; empty if it is.

        What it lost so far counts only as far as chance cannot explain it.
        """
        card, rows = result.scorecard, self.limits.rows
        if card.quality is None:
            return ""
        if card.drop_error is not None:
            self.drop_error = card.drop_error
        slack = STANDARD_ERRORS * max(self.drop_error, 1 / rows)
        drop = self.limits.teacher_quality - card.quality
        lost = f"after {result.stage} it loses {100 * drop:.1f} points of {card.metric} on {rows} selection rows"
        if drop - slack > self.limits.max_drop:
            return f"{lost}, {100 * self.limits.max_drop:g} are allowed, and chance explains {100 * slack:.1f}"
        for rival in self.rivals:
            if self.cost is not None and pareto.dominates((rival.drop, rival.cost), (drop - slack, self.cost)):
                return f"{lost}, chance explains {100 * slack:.1f}, and trial {rival.number} loses less and costs less"
        return ""

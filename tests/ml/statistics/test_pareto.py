"""Pareto fronts: what is in them, and what is not."""

from __future__ import annotations

from tasks.ml.statistics import pareto


def test_nothing_dominates_itself_or_what_is_better_elsewhere() -> None:
    assert not pareto.dominates((1.0, 2.0), (1.0, 2.0))
    assert not pareto.dominates((1.0, 3.0), (2.0, 1.0))
    assert pareto.dominates((1.0, 2.0), (1.0, 3.0))


def test_the_front_is_what_nobody_dominates() -> None:
    points = [(0.0, 9.0), (1.0, 5.0), (2.0, 5.0), (3.0, 1.0), (3.0, 1.0), (9.0, 9.0)]
    assert pareto.front(points) == [0, 1, 3, 4]
    assert pareto.front([]) == []

"""Pareto fronts of models: none of a front is at least as good in everything as another, and better in something.

Multi-objective terms as in Deb 2001, *Multi-Objective Optimization Using Evolutionary Algorithms*, section 2.4. All
objectives are minimized.
"""

from __future__ import annotations

from collections.abc import Sequence

Objectives = tuple[float, ...]


def dominates(first: Objectives, second: Objectives) -> bool:
    """Whether ``first`` is nowhere worse than ``second`` and somewhere better."""
    return first != second and all(a <= b for a, b in zip(first, second, strict=True))


def front(points: Sequence[Objectives]) -> list[int]:
    """Indices of the points that no other dominates, in their order; of equal points all are in it or none."""
    return [index for index, point in enumerate(points) if not any(dominates(other, point) for other in points)]

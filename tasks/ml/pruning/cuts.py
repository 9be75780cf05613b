"""How many units a cut leaves: whole numbers of heads, FFN channels and hidden dimensions. Needs no torch."""

from __future__ import annotations

WIDTHS = 8
"""Widths of the FFN that are timed, evenly spread."""
SPARSE_WIDTHS = 3
"""The same, and heads, in the layer that computes one token only: its times are short and grow evenly."""


def units(there: int, *, keep: float) -> int:
    """A fraction of the heads or FFN channels of a layer; at least one where there are any."""
    return max(min(1, there), round(keep * there))


def dimensions(hidden: int, *, keep: float, head_size: int) -> int:
    """A fraction of a hidden size: a whole number of head sizes, at least one."""
    return min(max(1, round(keep * hidden / head_size)) * head_size, hidden)


def evenly(largest: int, steps: int) -> list[int]:
    """Numbers of units from ``largest / steps`` to ``largest``, as even as whole numbers can be."""
    return sorted({max(1, round(largest * step / steps)) for step in range(1, steps + 1)})

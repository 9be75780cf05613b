"""How quality is said: fractions as percentages and their differences in points, bits per byte as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tasks.reporting import numbers

Format = Callable[[float], str]
BITS = "bits a byte"


@dataclass(frozen=True)
class Measure:
    """How the values of a metric are said.

    Attributes:
        name: of the metric, in words.
        value: of a model's quality, and ``precise`` with more digits.
        tick: of an axis.
        difference: of one model's quality less another's, with its sign; of bits per byte without the unit.
        lost: of what a check of quality measured, and of its limit.
        scale: what a value is multiplied by where it is drawn over epochs.
        percent: whether it is a fraction.
    """

    name: str
    value: Format
    precise: Format
    tick: Format
    difference: Format
    lost: Format
    limit: Format
    scale: int
    percent: bool


def _bits(value: float) -> str:
    return f"{numbers.number(-value)}{numbers.SPACE}{BITS}"


def _bits_less(value: float) -> str:
    rounded = round(-value, 3)
    return f"{rounded:+.3f}".replace("-", numbers.MINUS) if rounded else "±0.000"


_BITS_PER_BYTE = Measure(
    "bits per byte",
    _bits,
    _bits,
    lambda x: numbers.plain(-x),
    _bits_less,
    partial(numbers.percent, decimals=2),
    lambda x: f"{numbers.plain(100 * x)}{numbers.SPACE}%",
    scale=-1,
    percent=False,
)
NOT_FRACTIONS = dict.fromkeys(("minus_bits_per_byte", "bits_per_byte"), _BITS_PER_BYTE)
"""Metrics that are no fractions, by name."""


def of(metric: str) -> Measure:
    """How a metric is said, by its name."""
    fraction = Measure(
        metric,
        numbers.percent,
        partial(numbers.percent, decimals=2),
        lambda x: f"{numbers.plain(100 * x)} %",
        partial(numbers.points, signed=True),
        numbers.points,
        lambda x: f"{numbers.plain(100 * x)} points",
        scale=100,
        percent=True,
    )
    return NOT_FRACTIONS.get(metric, fraction)

"""Numbers as a person reads them: three significant digits, a true minus sign, the unit beside the number."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.ml.statistics.comparison import Estimate

MINUS = "\N{MINUS SIGN}"
SPACE = "\N{NARROW NO-BREAK SPACE}"


def number(value: float, digits: int = 3) -> str:
    """Formats with ``digits`` significant digits, thousands separated, never in scientific notation unless tiny.

    >>> number(1234.5), number(0.6912), number(15)
    ('1,234', '0.691', '15')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    magnitude = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))  # of the rounded value: 9.996 is 10.0
    if magnitude < -4:
        text = f"{value:.{digits - 1}e}"
    elif isinstance(value, int):
        text = f"{value:,}"
    else:
        text = f"{value:,.{max(0, digits - 1 - magnitude)}f}"
    return text.replace("-", MINUS)


def percent(value: float, decimals: int = 1) -> str:
    """A fraction as a percentage: 0.8531 → ``85.3 %``."""
    return f"{100 * value:.{decimals}f}".replace("-", MINUS) + f"{SPACE}%"


def points(value: float, *, signed: bool = False) -> str:
    """A difference of fractions in percentage points: 0.0042 → ``0.42 points``."""
    rounded = round(100 * value, 2) + 0.0  # −0.0 → 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.2f}".replace("-", MINUS) + f"{SPACE}points"


def p_value(value: float) -> str:
    """A p-value: ``p = 0.031``, or ``p < 0.001``."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2f}" if value >= 0.1 else f"p = {value:.3f}"


def times(value: float) -> str:
    """A ratio: 10.42 → ``10.4×``."""
    return f"{number(value)}×"


def change(value: float, before: float) -> str:
    """The relative change from ``before`` to ``value``: ``−46 %``."""
    rounded = round(100 * (value / before - 1))
    return f"{rounded:+d}".replace("-", MINUS).replace("+0", "±0") + f"{SPACE}%"


def plain(value: float) -> str:
    """A round number as it was written: 6.0 → ``6``, 0.25 → ``0.25``."""
    return f"{round(value, 9):g}".replace("-", MINUS)


def aligned(values: Sequence[float]) -> list[str]:
    """Round numbers with as many decimals as the one that needs most: 0.7, 0.71 → ``0.70``, ``0.71``."""
    decimals = max((len(plain(value).partition(".")[2]) for value in values), default=0)
    return [f"{value:.{decimals}f}".replace("-", MINUS) for value in values]


def capital(text: str) -> str:
    """The text with its first letter capital, and the others as they are."""
    return text[:1].upper() + text[1:]


def unit(value: float, name: str) -> str:
    """A number and its unit: ``8.84 MB``."""
    return f"{number(value)}{SPACE}{name}"


def between(low: float, high: float, form: Callable[[float], str]) -> str:
    """The two ends of an interval, with a unit that both have once: ``1.20 to 1.40×``, ``−1.4 to +0.3 points``."""
    first, last = form(low), form(high)
    unit = re.fullmatch(r"\S*\d(\D*)", last)
    return f"{first.removesuffix(unit[1]) if unit else first} to {last}"


def uncertainty(one: Estimate, form: Callable[[float], str]) -> str:
    """The two ends of an estimate's interval; empty where there is none, or where it has no width."""
    return "" if one.low is None or one.high is None or one.low == one.high else between(one.low, one.high, form)


def known(value: float | None, form: Callable[[float], str]) -> str:
    """The value, or a dash where there is none."""
    return "–" if value is None else form(value)


def tile(value: str, name: str, detail: str) -> dict[str, str]:
    """A number at the head of a page, its unit apart."""
    figure, _, unit = value.partition(SPACE)
    return {"figure": figure, "unit": unit, "name": name, "detail": detail}


def scaled(value: float, name: str) -> str:
    """A number with the decimal prefix that fits: 1.45e10 ``FLOP`` → ``14.5 GFLOP``, 0.0143 ``s`` → ``14.3 ms``."""
    prefixes = ("µ", "m", "", "k", "M", "G", "T", "P")
    power = math.floor(math.log10(float(f"{abs(value):.2e}")) / 3) if value else 0  # of the rounded value
    power = min(max(power, -2), 5)
    return unit(value / 1000.0**power, prefixes[power + 2] + name)


def duration(seconds: float) -> str:
    """Seconds as ``0.42 s``, ``42 s`` or ``3 min 20 s``."""
    if seconds < 60:
        return f"{seconds:.2g}{SPACE}s" if seconds < 10 else f"{seconds:.0f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}{SPACE}min {rest}{SPACE}s"

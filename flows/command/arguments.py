"""Arguments of the command line: read and bounded before anything is imported, and refused in one line."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from cyclopts import Token

LONGEST = 20
"""Characters that are quoted of what is no number."""
HOUR_S = 3600
LONGEST_LINE = 1000
"""Characters of a line that is said; more of it would be what was given, and hide what is wrong."""


def line(text: str, longest: int = LONGEST_LINE) -> str:
    """A text as a line that a terminal shows and does not obey, as long as a person reads."""
    shown = "".join(
        one if one.isprintable() or unicodedata.category(one) == "Zs" else "\N{REPLACEMENT CHARACTER}" for one in text
    )
    half = longest // 2
    return shown if len(shown) <= longest else f"{shown[:half]} … {shown[-half:]}"


def _bounded(kind: Callable[[str], Any], is_right: Callable[[Any], bool], words: str) -> Parameter:
    """Reads a number, which must be what ``words`` say."""

    def read(_: object, tokens: Sequence[Token]) -> Any:
        text = tokens[0].value
        try:
            if "_" not in text and is_right(value := kind(text)):
                return value
        except ValueError:
            pass
        raise ValueError(f"must be {words}, not {text[:LONGEST]!r}")

    return Parameter(converter=read)


def whole(low: int, high: int) -> Parameter:
    """Reads a whole number in a range."""
    return _bounded(int, lambda value: low <= value <= high, f"a whole number from {low} to {high}")


def utf8(_: object, tokens: Sequence[Token]) -> str:
    """Reads what is to be kept as text elsewhere."""
    text = tokens[0].value
    if text != text.encode(errors="replace").decode():
        raise ValueError(f"Invalid text {text[:LONGEST]!r}: it is not UTF-8")
    return text


def one_of(*choices: str) -> Parameter:
    """Takes one of a few words; unlike a ``Literal`` that may be None it takes no ``none``."""
    return Parameter(choices=choices)


Port = Annotated[int, whole(1, 65535)]
Count = Annotated[int, whole(1, 1_000_000)]
Positive = Annotated[float, _bounded(float, lambda value: 0 < value < math.inf, "a number above 0")]
Seconds = Annotated[
    float, _bounded(float, lambda value: 0 < value <= HOUR_S, f"a number above 0, and at most {HOUR_S}")
]
Share = Annotated[float, _bounded(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")]

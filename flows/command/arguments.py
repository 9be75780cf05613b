"""Arguments of the command line: read and bounded before anything is imported, and refused in one line."""

from __future__ import annotations

import argparse
import math
import unicodedata
from collections.abc import Callable
from typing import NoReturn

BAD_INPUT = 2
LONGEST = 20
"""Characters of a number that are read, and quoted where they are none."""


HOUR_S = 3600
LONGEST_LINE = 1000
"""Characters of a line that is said; more of it would be what was given, and hide what is wrong."""


def line(text: str) -> str:
    """A text as a line that a terminal shows and does not obey, as long as a person reads."""
    shown = "".join(
        one if one.isprintable() or unicodedata.category(one) == "Zs" else "\N{REPLACEMENT CHARACTER}" for one in text
    )
    half = LONGEST_LINE // 2
    return shown if len(shown) <= LONGEST_LINE else f"{shown[:half]} … {shown[-half:]}"


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, where argparse would print the usage first."""

    def error(self, message: str) -> NoReturn:
        said = line(" ".join(message.split()))
        self.exit(BAD_INPUT, f"featherweight: {said[:300]}; see '{self.prog} --help'\n")


def whole(low: int, high: int) -> Callable[[str], int]:
    """Reads a whole number in a range."""

    def read(text: str) -> int:
        digits = text.strip().removeprefix("-")
        if not digits.isdecimal() or len(digits) > LONGEST or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text[:LONGEST]!r}")
        return int(text)

    return read


PORT, COUNT = whole(1, 65535), whole(1, 1_000_000)


def positive(text: str) -> float:
    """Reads a number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text[:LONGEST]!r}")
    return value


def seconds(text: str) -> float:
    """Reads a number of seconds above 0, of an hour at most."""
    value = _number(text)
    if not 0 < value <= HOUR_S:
        raise argparse.ArgumentTypeError(f"must be a number above 0, and at most {HOUR_S}, not {text[:LONGEST]!r}")
    return value


def share(text: str) -> float:
    """Reads a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text[:LONGEST]!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def names(text: str) -> list[str]:
    """Reads names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]

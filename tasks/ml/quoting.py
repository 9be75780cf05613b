"""What a message quotes of an input: on one line and at most about one long, however large or deep it is."""

from __future__ import annotations

import reprlib

LINE = 100
"""Characters that are quoted at most, unless fewer are asked for."""


def quoted(value: object, longest: int = LINE) -> str:
    """A value as Python writes it, text in quotes; what is left out stands as an ellipsis."""
    if isinstance(value, str):
        shown, limit = repr(value if len(value) <= longest else f"{value[: longest - 1]}…"), longest + 2
    else:
        shortened = reprlib.Repr()
        shortened.maxstring = shortened.maxother = shortened.maxlong = longest
        shortened.maxlevel = 3
        shown, limit = shortened.repr(value), longest
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"

"""Words of data and people in Markdown: they stand there as they are, and are never markup, HTML or another line."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence


def _one_line(value: str) -> str:
    """The value with every line break, tab and control character as a space."""
    return " ".join("".join(char if char.isprintable() else " " for char in value).split())


def text(value: str) -> str:
    """A value as running text, or as a cell of a table."""
    shown = re.sub(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", _one_line(value))
    return html.escape(shown, quote=False)


def code(value: str) -> str:
    """A value as code: between more backticks than it has in a row."""
    shown = _one_line(value) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if "`" in shown else f"{fence}{shown}{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are text."""
    lines = [header, ["---"] * len(header), *([text(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

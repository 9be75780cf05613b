"""Rows of text and label, checked one by one.

Every error names the file, the row and the column, says what is wrong, and what would be right.
"""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

from tasks.contracts.base import FeatherweightError
from tasks.ml.data import conversations
from tasks.ml.quoting import quoted

SHOWN = 40
"""Characters of a name or value that a message quotes."""
LONGEST_LABEL = 200
"""Characters of a label, above which it is taken to be a text."""


T = TypeVar("T")


@dataclass(frozen=True)
class Columns:
    """The wanted columns of one file, as they are written there.

    Attributes:
        origin: the file's name, or a hub dataset and its split: how errors call it.
        unit: what ``numbers`` count from 1: lines of a text file, or rows.
    """

    origin: str
    unit: str
    numbers: Sequence[int]
    values: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Table:
    """Checked rows: texts that are not empty, each with its label (``labels`` is empty for unlabeled text).

    Texts are all ``conversations.Conversation``, or none is.
    """

    origin: str
    unit: str
    numbers: Sequence[int]
    texts: list[str]
    labels: list[str]
    label_column: str
    text_column: str = "text"

    def place(self, index: int) -> str:
        """Names a row for a person: its file and line."""
        return f"{self.origin}, {self.unit} {self.numbers[index]}"


def check(columns: Columns, *, text: str, label: str | None) -> Table:
    """Makes a table of columns in which every text and every label is usable.

    Raises:
        FeatherweightError: there is no row, a text is empty or not text, only some are conversations, or a label is
            missing or not a name.
    """
    if not columns.numbers:
        raise FeatherweightError(f"{columns.origin}: there are no rows; at least a few per label are needed")

    def each(name: str, clean: Callable[[Any], str]) -> list[str]:
        cleaned: list[str] = []
        wrong: list[str] = []
        for number, value in zip(columns.numbers, columns.values[name], strict=True):
            try:
                cleaned.append(clean(value))
            except ValueError as error:
                wrong.append(f"{columns.origin}, {columns.unit} {number}, column {name!r}: {error}")
        if wrong:
            others = f" ({len(wrong):,} of {len(columns.numbers):,} rows are like that)" if len(wrong) > 1 else ""
            raise FeatherweightError(wrong[0] + others)
        return cleaned

    table = Table(
        origin=columns.origin,
        unit=columns.unit,
        numbers=columns.numbers,
        texts=each(text, _text),
        labels=[] if label is None else each(label, _label),
        label_column=label or "",
        text_column=text,
    )
    kinds = [isinstance(one, conversations.Conversation) for one in table.texts]
    if kinds.count(True) not in (0, len(kinds)):
        odd = kinds.index(not kinds[0])
        what, others = ("a text", "conversations") if kinds[0] else ("a conversation", "texts")
        raise FeatherweightError(
            f"{table.place(odd)}, column {text!r}: {what} among {others}; give each kind a source of its own"
        )
    return table


def drawn(items: Iterable[T], most: int | None) -> tuple[list[T], int]:
    """Up to ``most`` items in their order, drawn at random, the same each time; and how many there are.

    At random, since rows often take turns: every second one may have the same label. Vitter 1985, algorithm R.
    """
    if most is None:
        kept = list(items)
        return kept, len(kept)
    chance, total = random.Random(0), 0
    numbered: list[tuple[int, T]] = []
    for total, item in enumerate(items, start=1):
        if total <= most:
            numbered.append((total, item))
        elif (place := chance.randrange(total)) < most:
            numbered[place] = (total, item)
    return [item for _, item in sorted(numbered, key=lambda one: one[0])], total


def require_columns(
    origin: str,
    present: Iterable[str],
    wanted: Sequence[str],
    *,
    fields: Sequence[str] = ("data.text", "data.label"),
    hint: str = "",
) -> None:
    """Raises ``FeatherweightError`` unless each wanted column is there once, with what is and the likeliest one.

    Args:
        wanted: the column of the text, and that of the label if there is one.
        fields: where these were named.
        hint: what else may be wrong.
    """
    present = list(present)
    for name, field in zip(wanted, fields, strict=False):
        if name not in present:
            close = difflib.get_close_matches(name, present, n=1)
            mend = f"did you mean {close[0]!r}? Set {field}" if close else f"name one of these in {field}"
            columns = ", ".join(quoted(column, SHOWN) for column in present[:30]) or "none"
            raise FeatherweightError(f"{origin}: there is no column {name!r}; the columns are {columns}; {mend}{hint}")
        if present.count(name) > 1:
            raise FeatherweightError(f"{origin}: column {name!r} is there twice; rename one of them")


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return _encodable(conversations.parse(value))
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is not text; every row needs a text")
    if not value.strip():
        raise ValueError("the text is empty; remove the row or give it a text")
    return _encodable(value)


def _label(value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and value != value):
        raise ValueError("the label is missing; remove the row or give it a label")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        raise ValueError(
            f"{_shown(value)} looks like several labels; name a column that holds one label per text in data.label"
        )
    if not isinstance(value, str | int | float | Decimal) or value in (math.inf, -math.inf):
        raise ValueError(f"{_shown(value)} is not a label; labels are text or numbers")
    label = _encodable(str(value).strip())
    if len(label) > LONGEST_LABEL:
        raise ValueError(
            f"{_shown(value)} is not a label: it has {len(label)} characters; name the column of labels in data.label"
        )
    return label


def _encodable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start + 1} is half a surrogate pair, which is not valid text") from None
    return value


def _shown(value: Any) -> str:
    return "null" if value is None else f"{quoted(str(value), SHOWN)} ({type(value).__name__})"

"""What a column of a table is, judged by its values and its name: text, classes, scores, or nothing to learn from."""

from __future__ import annotations

import datetime
import math
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

from tasks.ml.data.label_kinds import ENOUGH, is_number
from tasks.ml.quoting import quoted

TEXT_NAMES = frozenset({
    "text", "sentence", "review", "content", "body", "comment", "message", "tweet", "utterance", "query", "question",
    "description", "document", "headline", "title", "summary", "article", "abstract", "post", "statement", "sms",
    "email",
})  # fmt: skip
"""Words of which one in a column's name says that it holds what is read."""
LABEL_NAMES = frozenset({
    "label", "labels", "class", "target", "category", "sentiment", "intent", "topic", "rating", "ratings", "stars",
    "star", "score", "polarity", "emotion", "toxicity", "toxic", "spam", "tag", "tags", "gold", "grade", "priority",
})  # fmt: skip
"""Words of which one in a column's name says that it holds what is learned."""
DATE = re.compile(r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})([ T]\d{1,2}:\d{2}.*)?", re.ASCII)
MEASURED = 1000
"""Values of which the length is measured."""
SENTENCE = 3
"""Words that half the values of a column have at least, if they are sentences."""
CHARACTERS_A_WORD = 2
"""Of scripts that are written without spaces."""
DISTINCT_TEXTS = 0.1
"""Share of distinct values below which even sentences are names of classes."""
MOST_CODES = 20
"""Whole numbers up to which any are classes; more are, if they count from 0 or 1 without a gap."""
SHOWN = 5
"""Classes that are listed with their shares."""


class ColumnKind(StrEnum):
    TEXT = "text"
    CLASSES = "classes"
    SCORES = "scores"
    """Numbers."""
    OWN = "own"
    """A value of its own in most rows, such as ids, names and links."""
    DATES = "dates"
    CONSTANT = "constant"
    LISTS = "lists"
    EMPTY = "empty"
    OTHER = "other"


@dataclass(frozen=True)
class Column:
    """What was seen of a column.

    Attributes:
        what: what it is, in words.
        missing: rows without a value.
        length: median number of words of a value; of characters over ``CHARACTERS_A_WORD`` where these are more.
    """

    name: str
    kind: ColumnKind
    what: str
    missing: int = 0
    length: float = 0.0

    def is_called(self, names: frozenset[str]) -> bool:
        """Whether its name has one of these words: apart, in camelCase, or before a number."""
        return bool(names & {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", self.name)})


def describe(name: str, values: Sequence[Any]) -> Column:
    """Says what a column is."""
    present = [value for value in values if not _is_missing(value)]
    kind, what = _judged(name, present)
    return Column(name, kind, what, missing=len(values) - len(present), length=_length(present))


def _is_missing(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _judged(name: str, present: Sequence[Any]) -> tuple[ColumnKind, str]:
    if not present:
        return ColumnKind.EMPTY, "no values"
    if all(isinstance(value, list) for value in present):
        return ColumnKind.LISTS, f"lists, {sum(map(len, present)) / len(present):.1f} values long on average"
    if all(isinstance(value, datetime.date | datetime.time) for value in present):
        return ColumnKind.DATES, "dates"
    if not all(isinstance(value, str | int | float | Decimal) for value in present):
        odd = next(value for value in present if not isinstance(value, str | int | float | Decimal))
        return ColumnKind.OTHER, f"values of another kind, such as {type(odd).__name__}"
    written = [str(value).strip() for value in present]
    counts = Counter(written)
    if len(counts) == 1:
        return ColumnKind.CONSTANT, f"{quoted(written[0], 40)} in every row"
    numbers = [value.replace(",", ".") for value in written]
    if all(map(is_number, numbers)):
        return _numeric(name, numbers, len(counts))
    if all(DATE.fullmatch(value) for value in written[:MEASURED]):
        return ColumnKind.DATES, "dates"
    length = _length(present)
    is_named = Column(name, ColumnKind.TEXT, "").is_called(TEXT_NAMES)
    if len(counts) >= DISTINCT_TEXTS * len(written) and (length >= SENTENCE or (is_named and length >= SENTENCE / 2)):
        return ColumnKind.TEXT, _words(present, length)
    if len(written) >= ENOUGH and 2 * len(counts) > len(written):
        return ColumnKind.OWN, f"a value of its own in most rows, such as {quoted(written[0], 40)}"
    return ColumnKind.CLASSES, shares(counts)


def _numeric(name: str, written: Sequence[str], distinct: int) -> tuple[ColumnKind, str]:
    values = [float(number) for number in written]
    low, high = min(values), max(values)
    scores = ColumnKind.SCORES, f"numbers from {low:.6g} to {high:.6g}"
    if not all(value.is_integer() for value in values):
        return scores
    if distinct == len(values) and not Column(name, ColumnKind.OWN, "").is_called(LABEL_NAMES):
        return ColumnKind.OWN, "a whole number of its own in every row"
    counts_up = low in (0, 1) and math.isfinite(high) and high - low + 1 == distinct
    if distinct > MOST_CODES and not counts_up:
        return scores
    return ColumnKind.CLASSES, shares(Counter(f"{value:.15g}" for value in values))


def shares(counts: Counter[str], what: str = "values") -> str:
    """How many classes there are, and which share the largest have."""
    total = counts.total()
    listed = ", ".join(f"{_plain(name)} {percent(count / total)}" for name, count in counts.most_common(SHOWN))
    return f"{len(counts)} {what}: {listed}{', …' if len(counts) > SHOWN else ''}"


def percent(share: float) -> str:
    """A share in percent, in two digits or more, and never rounded to none or all."""
    value = 100 * share
    near = value if 0 < value < 1 else 100 - value if 99 < value < 100 else 0
    digits = max(0, 1 - math.floor(math.log10(near))) if near else 0
    return f"{value:.{min(digits, 3)}f} %"


def _plain(name: str) -> str:
    """A name as it is where it is short and plain, and else in quotes."""
    return name if len(name) <= 30 and re.fullmatch(r"[\w.+-]+( [\w.+-]+)*", name) else quoted(name, 30)


def _length(present: Sequence[Any]) -> float:
    measured = [value for value in present[:MEASURED] if isinstance(value, str)]
    lengths = [max(len(one.split()), _wide(one) / CHARACTERS_A_WORD) for one in measured]
    return float(statistics.median(lengths)) if lengths else 0.0


def _wide(text: str) -> int:
    """Characters of scripts that are written without spaces."""
    return 0 if text.isascii() else sum(unicodedata.east_asian_width(one) in "WF" or "ก" <= one <= "๛" for one in text)


def _words(present: Sequence[Any], length: float) -> str:
    texts = [value for value in present[:MEASURED] if isinstance(value, str)]
    if 2 * sum(map(_wide, texts)) > sum(map(len, texts)):
        return f"texts of about {CHARACTERS_A_WORD * length:.0f} characters"
    return f"texts of about {length:.0f} words"

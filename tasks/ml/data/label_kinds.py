"""What a column of labels looks like, judged by the labels alone: a problem learns from one kind and refuses others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
SEPARATORS = "|;,"
MISSING = {"nan", "NaN", "NAN", "NaT", "<NA>", "#N/A"}
MISSING_AMONG_NUMBERS = {"none", "null", "na", "n/a", "nil", "?", "-"}
ENOUGH = 20
"""Rows from which on it says something that most labels occur once."""


class Kind(StrEnum):
    CLASSES = "classes"
    SCORES = "scores"
    """Numbers, some with a fraction."""
    SETS = "sets"
    """Several labels written as one."""
    MISSING = "missing"
    """Words that stand for no value."""
    UNIQUE = "unique"
    """Most rows have a label of their own: ids, scores or free text."""


@dataclass(frozen=True)
class Look:
    """What labels look like.

    Attributes:
        rows: indices of the rows that show it.
        separator: of ``SETS``.
    """

    kind: Kind
    rows: Sequence[int] = ()
    separator: str = ""


def look(labels: Sequence[str]) -> Look:
    """Says what kind of labels these are; what is not surely of another kind are classes."""
    counts = Counter(labels)

    def showing(kind: Kind, shown: Iterable[str], separator: str = "") -> Look:
        wanted = set(shown)
        return Look(kind, [index for index, label in enumerate(labels) if label in wanted], separator)

    missing = {label for label in counts if label in MISSING}
    unlikely = {label for label in counts if label.lower() in MISSING_AMONG_NUMBERS}
    others = counts.keys() - missing - unlikely
    if missing or (unlikely and others and all(map(is_number, others))):
        return showing(Kind.MISSING, missing | (unlikely if all(map(is_number, others)) else set()))
    if all(map(is_number, counts)):
        if fractions := [label for label in counts if not float(label).is_integer()]:
            return showing(Kind.SCORES, fractions)
    else:
        for separator in SEPARATORS:
            if several := _several(counts, separator):
                return showing(Kind.SETS, several, separator)
    once = [label for label, count in counts.items() if count == 1]
    if len(labels) >= ENOUGH and 2 * len(once) > len(labels):
        return showing(Kind.UNIQUE, once)
    return Look(Kind.CLASSES)


def is_number(label: str) -> bool:
    """Whether a label is a decimal number."""
    return NUMBER.fullmatch(label) is not None


def _several(labels: Iterable[str], separator: str) -> list[str]:
    """Labels made of others, if most that hold the separator are; a name that merely holds one has parts of its own."""
    parts = {label: frozenset(part.strip() for part in label.split(separator)) for label in labels}
    occurs = Counter(part for found in parts.values() for part in found)
    joined = [label for label, found in parts.items() if len(found) > 1]
    made = [label for label in joined if all(part and occurs[part] > 1 for part in parts[label])]
    lengths = {len(found) for found in parts.values()}
    return made if len(lengths) > 1 and 2 * len(made) > len(joined) else []

"""What a column of labels looks like, judged by the labels alone: a problem learns from one kind and refuses others."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum

from tasks.contracts.base import FeatherweightError
from tasks.ml.data.tables import Table

logger = logging.getLogger("featherweight")

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


def as_classes(tables: Mapping[str, Table]) -> dict[str, Table]:
    """Labels as classes; whole numbers that were written with a fraction of zero are the integers that they were.

    Args:
        tables: the labelled splits of a source.

    Raises:
        FeatherweightError: they do not look like classes, with what they look like and what would be right.
    """
    places = [(table, index) for table in tables.values() for index in range(len(table.labels))]
    found = look([table.labels[index] for table, index in places])
    if found.kind is not Kind.CLASSES:
        table, index = places[found.rows[0]]
        many = f"{len(found.rows)} of {len(places)} rows"
        raise FeatherweightError(
            f"{table.place(index)}, column {table.label_column!r}: {table.labels[index][:80]!r} "
            + {
                Kind.SCORES: f"looks like a score, not like a class ({many} have a number with a fraction): that would "
                "be regression, which problem: text-classification does not learn; name a column of classes in "
                "data.label, or write classes as words",
                Kind.SETS: f"looks like several labels, separated by {found.separator!r} ({many}): problem: "
                "text-classification learns one label per text; name a column that holds one in data.label, or, where "
                f"each combination is a class, write it without {found.separator!r}",
                Kind.MISSING: f"looks like a missing label ({many}); remove these rows, or name another column in "
                "data.label",
                Kind.UNIQUE: f"is the label of this row alone, as in {many}: that looks like ids, scores or free text, "
                "not like classes; name a column of classes in data.label",
            }[found.kind]
        )
    for alike in _spellings(table.labels[index] for table, index in places):
        logger.warning(
            "labels %s are classes of their own though they differ only in how they are written; "
            "write them alike if they mean the same",
            ", ".join(repr(label[:80]) for label in alike),
        )
    return {name: _whole(table) for name, table in tables.items()}


def _spellings(labels: Iterable[str]) -> list[list[str]]:
    """Groups of labels that are one but for case, spaces and forms of the same characters."""
    groups: dict[str, list[str]] = {}
    for label in sorted(set(labels)):
        groups.setdefault(" ".join(unicodedata.normalize("NFKC", label).casefold().split()), []).append(label)
    return [alike for alike in groups.values() if len(alike) > 1]


def _whole(table: Table) -> Table:
    written = set(table.labels)
    fractions = sorted(label for label in written if not label.lstrip("+-").isdecimal())
    if not fractions or not all(map(is_number, written)):
        return table
    logger.warning(
        "%s, column %r: labels such as %s are whole numbers written with a fraction: taken as the classes %s",
        table.origin,
        table.label_column,
        fractions[0],
        ", ".join(map(str, sorted({_integer(label) for label in written})[:20])),
    )
    return replace(table, labels=[str(_integer(label)) for label in table.labels])


def _integer(label: str) -> int:
    """A whole number, however long: a float would make one class of two that differ in their last digit."""
    return int(Decimal(label))

"""Labels as classes: what they must look like, and the order of their indices."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal

from tasks.contracts.base import FeatherweightError
from tasks.ml.data.label_kinds import Kind, is_number, look
from tasks.ml.data.tables import Table

logger = logging.getLogger("featherweight")


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
                Kind.SCORES: f"looks like a score, not like a class ({many} have a number with a fraction): set "
                "problem: text-regression to learn scores; or name a column of classes in data.label, or write classes "
                "as words",
                Kind.SETS: f"looks like several labels, separated by {found.separator!r} ({many}): problem: "
                "text-classification learns one label per text; name a column that holds one in data.label, or, where "
                f"each combination is a class, write it without {found.separator!r}",
                Kind.MISSING: f"looks like a missing label ({many}); remove these rows, or name another column in "
                "data.label",
                Kind.UNIQUE: f"is the label of this row alone, as in {many}: that looks like ids, scores or free text, "
                "not like classes; name a column of classes in data.label, or, to learn scores, set problem: "
                "text-regression",
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


def names(tables: Mapping[str, Table]) -> list[str]:
    """Names in the order of the class indices: by value if all are integers, else alphabetical.

    Raises:
        FeatherweightError: there is one class, or one that cannot be learned.
    """
    train = tables["train"]
    labels = set(train.labels)
    if len(labels) < 2:
        raise FeatherweightError(
            f"{train.origin}, column {train.label_column!r}: every row has the label {train.labels[0]!r}; "
            "at least two labels are needed to learn a difference"
        )
    ordered = sorted(labels)
    if all(label.removeprefix("-").isdecimal() for label in labels):
        ordered.sort(key=int)
    for name in ("selection", "test"):
        for index, label in enumerate(tables[name].labels if name in tables else ()):
            if label not in labels:
                raise FeatherweightError(
                    f"{tables[name].place(index)}, column {train.label_column!r}: label {label!r} is not in "
                    f"{train.origin}, so it cannot be learned; the labels there are {', '.join(ordered[:20])}"
                )
    return ordered

"""Divides rows by the content of their text, so that the same text is always in the same split, alone and once.

Which split a text is in depends on the text only: not on a seed, the order of rows, or what else is in the data.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tasks.contracts import FeatherweightError
from tasks.ml.tables import Table

SPLITS = ("train", "calibration", "selection", "test")
MAX_CONFLICTS = 0.1
"""Share of texts with more than one label above which the label column is taken to be the wrong one."""


class Row(NamedTuple):
    """A text, its label ("" if it has none) and the SHA-256 of the text as ``normalized``."""

    text: str
    label: str
    key: bytes

    @property
    def position(self) -> float:
        """Where in [0, 1) the text falls when rows are divided."""
        return int.from_bytes(self.key[:8]) / 2**64

    @property
    def rank(self) -> bytes:
        """Order in which rows are stored and limited: of other bits than ``position``, to be independent of it."""
        return self.key[8:]


@dataclass(frozen=True)
class Division:
    """Rows by split, in an order that only their texts decide.

    Attributes:
        labels: names in the order of the class indices.
        splits: ``SPLITS`` and ``unlabeled``.
        dropped: rows left out, by reason.
    """

    labels: list[str]
    splits: dict[str, list[Row]]
    dropped: dict[str, int]


def normalized(text: str) -> str:
    """What makes two texts the same: Unicode NFC, each run of white space one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def key(text: str) -> bytes:
    """SHA-256 of the normalized text."""
    return hashlib.sha256(normalized(text).encode()).digest()


def divide(
    tables: Mapping[str, Table],
    unlabeled: Iterable[Table] = (),
    *,
    test: float,
    selection: float,
    calibration: float,
    max_rows: int = 0,
) -> Division:
    """Divides the splits of a source into train, calibration, selection and test, and cleans unlabeled text of them.

    A split that the source has of its own is kept; the others are carved from its train split. A text that occurs
    in several is kept in test before selection before train. The same text twice with one label is kept once; with
    different labels nobody knows which is right, and it is dropped.

    Args:
        test, selection, calibration: fractions of the rows they are carved from.
        max_rows: labeled rows to use, and as many unlabeled ones; the same ones each time. 0 uses all.

    Raises:
        FeatherweightError: labels do not fit together, or there are too few rows to fill every split.
    """
    labels = _labels(tables)
    dropped: Counter[str] = Counter()
    taken: set[bytes] = set()
    # In this order: what test has taken, the others do without.
    own = {name: _distinct(tables[name], taken, dropped) for name in ("test", "selection", "train") if name in tables}
    if max_rows:
        rows = sorted((row for split in own.values() for row in split), key=lambda row: row.rank)
        used = {row.key for row in rows[:max_rows]}
        own = {name: [row for row in split if row.key in used] for name, split in own.items()}
    fractions = {"test": test, "selection": selection, "calibration": calibration}
    carved = _carve(own["train"], {name: share for name, share in fractions.items() if name not in own})
    splits = {name: sorted({**own, **carved}[name], key=lambda row: row.rank) for name in SPLITS}
    _require_filled(splits, labels, max_rows)
    used = {row.key for split in splits.values() for row in split}
    dropped_unlabeled: Counter[str] = Counter()
    more = [row for table in unlabeled for row in _distinct(table, used, dropped_unlabeled)]
    more.sort(key=lambda row: row.rank)
    return Division(
        labels,
        {**splits, "unlabeled": more[: max_rows or None]},
        {reason: dropped[reason] for reason in ("duplicates", "conflicting_labels", "in_another_split")}
        | {f"unlabeled_{reason}": dropped_unlabeled[reason] for reason in ("duplicates", "in_another_split")},
    )


def _labels(tables: Mapping[str, Table]) -> list[str]:
    """Names in the order of the class indices: by value if all are integers, else alphabetical."""
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


def _distinct(table: Table, taken: set[bytes], dropped: Counter[str]) -> list[Row]:
    """Rows with a text of their own that is not ``taken``; takes their keys and counts what is dropped."""
    groups: dict[bytes, list[int]] = {}
    for index, text in enumerate(table.texts):
        groups.setdefault(key(text), []).append(index)
    rows: list[Row] = []
    conflicts: list[list[int]] = []
    for digest, indices in groups.items():
        labels = {table.labels[index] for index in indices} if table.labels else {""}
        if digest in taken:
            dropped["in_another_split"] += len(indices)
        elif len(labels) > 1:
            conflicts.append(indices)
        else:
            dropped["duplicates"] += len(indices) - 1
            # The smallest spelling, not the first: row order must not matter.
            rows.append(Row(min(table.texts[index] for index in indices), labels.pop(), digest))
    dropped["conflicting_labels"] += sum(map(len, conflicts))
    if len(conflicts) > MAX_CONFLICTS * len(groups):
        places = " and ".join(table.place(index) for index in conflicts[0][:2])
        raise FeatherweightError(
            f"{table.origin}, column {table.label_column!r}: {len(conflicts)} of {len(groups)} texts have more than "
            f"one label (first: {places}); at most {MAX_CONFLICTS:.0%} are tolerated; give each text one label"
        )
    taken.update(row.key for row in rows)
    return rows


def _carve(rows: list[Row], fractions: Mapping[str, float]) -> dict[str, list[Row]]:
    """Cuts [0, 1) into one interval per fraction and the rest for train, and puts each row where its position falls."""
    names = (*fractions, "train")
    upper = list(itertools.accumulate(fractions.values()))
    carved: dict[str, list[Row]] = {name: [] for name in names}
    for row in rows:
        carved[names[bisect.bisect_right(upper, row.position)]].append(row)
    return carved


def _require_filled(splits: Mapping[str, list[Row]], labels: list[str], max_rows: int) -> None:
    """Raises unless no split is empty, and train and test have rows of every label."""
    counts = {name: Counter(row.label for row in rows) for name, rows in splits.items()}
    total = sum(counts.values(), Counter[str]())
    mend = "raise data.max_rows" if max_rows else "add rows"
    for name in SPLITS:
        if not splits[name]:
            raise FeatherweightError(
                f"too few rows: none of {total.total()} distinct texts fell into the {name} split; "
                f"{mend}, or a larger data.{name}_fraction"
            )
    for name in ("train", "test"):
        for label in labels:
            if not counts[name][label]:
                raise FeatherweightError(
                    f"too few rows per label: {label!r} has {total[label]} distinct texts and none of them is in the "
                    f"{name} split; {mend} of it, or merge it with another label"
                )

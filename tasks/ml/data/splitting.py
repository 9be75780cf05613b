"""Divides rows by the content of their text, so that the same text is always in the same split, alone and once.

Each kind of rows, such as those of a label, is divided by itself, so that every split has its share of each. A text's
own hash says where it falls; only where that would leave a kind's share by more than ``SLACK`` do the texts next to a
border fall on its other side. So the order of rows and a seed decide nothing, and more rows move none of a kind with
thousands of them.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tasks.contracts.base import FeatherweightError
from tasks.ml.data.tables import Table
from tasks.ml.data.targets import Targets

SPLITS = ("train", "calibration", "selection", "test")
MAX_CONFLICTS = 0.1
"""Share of texts with more than one label above which the label column is taken to be the wrong one."""
SLACK = 50
"""One in so many of a label's rows may lie beyond the border between two splits: no row of a label with fewer."""
FEW = 5
"""Rows of a label in the test split below which hardly anything can be said of it."""


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
        targets: what is learned of the rows' labels.
        splits: ``SPLITS`` and ``unlabeled``.
        dropped: rows left out, by reason.
        warnings: a sentence for each thing about the rows that a person should know.
    """

    targets: Targets
    splits: dict[str, list[Row]]
    dropped: dict[str, int]
    warnings: list[str] = field(default_factory=list)


def normalized(text: str) -> str:
    """What makes two texts the same: Unicode NFC, each run of white space one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def key(text: str) -> bytes:
    """SHA-256 of the normalized text."""
    return hashlib.sha256(normalized(text).encode()).digest()


def keys(texts: Sequence[str]) -> list[bytes]:
    """``key`` of each text."""
    return [key(text) for text in texts]


def divide(
    targets: Targets,
    unlabeled: Iterable[Table] = (),
    *,
    test: float,
    selection: float,
    calibration: float,
    max_rows: int = 0,
    read: Callable[[Sequence[str]], Sequence[bytes]] = keys,
) -> Division:
    """Divides the splits of a source into train, calibration, selection and test, and cleans unlabeled text of them.

    A split that the source has of its own is kept; the others are carved from its train split. A text that occurs
    in several is kept in test before selection before train. The same text twice with one label is kept once; with
    different labels it is kept if the problem settles which holds, and dropped if nobody knows.

    Args:
        test, selection, calibration: fractions of the rows they are carved from.
        max_rows: labeled rows to use, and as many unlabeled ones; the same ones each time. 0 uses all.
        read: what a model makes of texts, equal for those that are one to it.

    Raises:
        FeatherweightError: there are too few rows to fill every split.
    """
    tables, stratum = targets.tables, targets.stratum
    dropped: Counter[str] = Counter()
    taken: dict[bytes, bytes] = {}
    # In this order: what test has taken, the others do without.
    own = {
        name: _distinct(tables[name], targets, read, taken, dropped)
        for name in ("test", "selection", "train")
        if name in tables
    }
    if max_rows:
        own = _limited(own, max_rows, stratum)
    fractions = {"test": test, "selection": selection, "calibration": calibration}
    carved = _carve(own["train"], {name: share for name, share in fractions.items() if name not in own}, stratum)
    _fill(carved, stratum)
    splits = {name: sorted({**own, **carved}[name], key=lambda row: row.rank) for name in SPLITS}
    _require_filled(splits, targets, max_rows)
    used = {row.key for split in splits.values() for row in split}
    taken = {name: owner for name, owner in taken.items() if owner in used}
    dropped_unlabeled: Counter[str] = Counter()
    more = [row for table in unlabeled for row in _distinct(table, targets, read, taken, dropped_unlabeled)]
    more.sort(key=lambda row: row.rank)
    return Division(
        targets,
        {**splits, "unlabeled": more[: max_rows or None]},
        {reason: dropped[reason] for reason in ("duplicates", "conflicting_labels", "in_another_split")}
        | {f"unlabeled_{reason}": dropped_unlabeled[reason] for reason in ("duplicates", "in_another_split")},
        _warnings(targets, splits["test"], own_test="test" in own, settled=dropped["settled"]),
    )


def _distinct(
    table: Table,
    targets: Targets,
    read: Callable[[Sequence[str]], Sequence[bytes]],
    taken: dict[bytes, bytes],
    dropped: Counter[str],
) -> list[Row]:
    """Rows with a text of their own that is not ``taken``; takes what they are the same as, and counts what is dropped.

    Args:
        taken: the key of the row that stands for a text, by the text's key and by what is read of it.
    """
    spelled: dict[bytes, list[int]] = defaultdict(list)
    for index, identity in enumerate(keys(table.texts)):
        spelled[identity].append(index)
    # The smallest spelling, not the first: row order must not matter.
    spellings = [min(table.texts[index] for index in indices) for indices in spelled.values()]
    groups: dict[bytes, list[bytes]] = defaultdict(list)
    for identity, seen in zip(spelled, read(spellings), strict=True):
        groups[seen].append(identity)
    rows: list[Row] = []
    conflicts: list[list[int]] = []
    names: list[tuple[bytes, ...]] = []
    for seen, identities in groups.items():
        indices = [index for identity in identities for index in spelled[identity]]
        if any(name in taken for name in (seen, *identities)):
            dropped["in_another_split"] += len(indices)
            continue
        text = min(table.texts[index] for index in indices)
        labels = [table.labels[index] for index in indices] if table.labels else [""]
        if table.labels and targets.of_text is not None:
            labels = [targets.of_text(text)]  # of the spelling that is kept
        label = labels[0]
        if len(set(labels)) > 1:
            label = targets.settle(labels) if len(identities) == 1 else ""
            if not label:
                conflicts.append(indices)
                continue
            dropped["settled"] += 1
        dropped["duplicates"] += len(indices) - 1
        rows.append(Row(text, label, key(text)))
        names.append((seen, *identities))
    dropped["conflicting_labels"] += sum(map(len, conflicts))
    if len(conflicts) > MAX_CONFLICTS * len(groups):
        raise _conflicting(table, conflicts, len(groups))
    taken.update({name: row.key for row, group in zip(rows, names, strict=True) for name in group})
    return rows


def _conflicting(table: Table, conflicts: list[list[int]], count: int) -> FeatherweightError:
    first = conflicts[0][0]
    other = next(index for index in conflicts[0] if table.labels[index] != table.labels[first])
    spelled_alike = key(table.texts[first]) == key(table.texts[other])
    alike = "" if spelled_alike else ", which are the same to the base model's tokenizer"
    mend = "give each text one label" + ("" if spelled_alike else ", or raise data.max_length")
    return FeatherweightError(
        f"{table.origin}, column {table.label_column!r}: {len(conflicts)} of {count} texts have more than one label "
        f"(first: {table.place(first)} and {table.place(other)}{alike}); at most {MAX_CONFLICTS:.0%} are tolerated; "
        f"{mend}"
    )


def _limited(own: Mapping[str, list[Row]], max_rows: int, stratum: Callable[[str], str]) -> dict[str, list[Row]]:
    """The same rows each time: of each split two of every kind first, so that none is lost while there is room."""
    ranked: list[tuple[bool, bytes, bytes]] = []
    for rows in own.values():
        seen: Counter[str] = Counter()
        for row in sorted(rows, key=lambda row: row.rank):
            seen[stratum(row.label)] += 1
            ranked.append((seen[stratum(row.label)] > 2, row.rank, row.key))
    used = {identity for *_, identity in sorted(ranked)[:max_rows]}
    return {name: [row for row in rows if row.key in used] for name, rows in own.items()}


def _carve(rows: list[Row], fractions: Mapping[str, float], stratum: Callable[[str], str]) -> dict[str, list[Row]]:
    """Divides the rows of each kind among the fractions, and the rest for train."""
    names, borders = (*fractions, "train"), list(itertools.accumulate(fractions.values()))
    carved: dict[str, list[Row]] = {name: [] for name in names}
    members: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.key):  # as by position
        members[stratum(row.label)].append(row)
    for kind, own in members.items():
        cuts = [0, *_cuts(own, kind, borders, least=int("test" in fractions)), len(own)]
        for name, (start, end) in zip(names, itertools.pairwise(cuts), strict=True):
            carved[name] += own[start:end]
    return carved


def _cuts(rows: list[Row], kind: str, borders: list[float], *, least: int) -> list[int]:
    """Where the rows of a kind, by position, are cut: where the borders are, but not far from its share of rows.

    Args:
        least: rows before the first cut, if any can be spared: one is left after the last.
    """
    # Parts of a row are rounded up for some kinds and down for others, or no split would get its share of all of them.
    part = int.from_bytes(key(kind)[:8]) / 2**64
    slack = len(rows) // SLACK
    cuts = []
    for border in borders:
        share = int(len(rows) * border + part)
        cut = bisect.bisect_left(rows, border, key=lambda row: row.position)
        cut = min(max(cut, share - slack), share + slack)
        cuts.append(min(max(cut, least), len(rows) - 1))
    return cuts


def _fill(carved: dict[str, list[Row]], stratum: Callable[[str], str]) -> None:
    """Gives each empty split a row that is missed least: of the kind that train, or else test, has most of."""
    for name in carved:
        for donor, fewest in (("train", 2), ("test", 2), ("test", 1)):
            rows = carved.get(donor, [])
            counts = Counter(stratum(row.label) for row in rows)
            spare = [row for row in rows if counts[stratum(row.label)] >= fewest]
            if not carved[name] and spare and len(rows) > 1:
                row = min(spare, key=lambda row: (-counts[stratum(row.label)], row.rank))
                rows.remove(row)
                carved[name].append(row)


def _require_filled(splits: Mapping[str, list[Row]], targets: Targets, max_rows: int) -> None:
    """Raises unless no split is empty, and train has rows of every kind."""
    counts = {name: Counter(targets.stratum(row.label) for row in rows) for name, rows in splits.items()}
    total = sum(counts.values(), Counter[str]())
    mend = "raise data.max_rows" if max_rows else "add rows"
    for label in targets.required:
        if not counts["train"][label]:
            raise FeatherweightError(
                f"too few rows per label: {label!r} has {total[label]} distinct texts and none of them is in the "
                f"train split; {mend} of it, or merge it with another label"
            )
    for name in SPLITS:
        if not splits[name]:
            raise FeatherweightError(
                f"too few rows: none of {total.total()} distinct texts can be spared for the {name} split; {mend}"
            )


def _warnings(targets: Targets, test: list[Row], *, own_test: bool, settled: int) -> list[str]:
    """Says of which labels the test split cannot say much about, and that some were made of several."""
    counts = Counter(targets.stratum(row.label) for row in test)
    absent = [label for label in targets.strata if not counts[label]]
    few = [label for label in targets.strata if 0 < counts[label] < FEW]
    mend = "add rows to the test file" if own_test else "add rows with these labels"
    found = [f"{settled} texts are there with several labels; each has their mean"] if settled else []
    if absent:
        found.append(f"the test split has no row of {_listed(absent)}, so it says nothing of how well they do; {mend}")
    if few:
        found.append(
            f"the test split has fewer than {FEW} rows of {_listed(few)}, so it says little of how well they do; {mend}"
        )
    return found


def _listed(labels: Sequence[str], most: int = 5) -> str:
    named = ", ".join(repr(label) for label in labels[:most])
    return named if len(labels) <= most else f"{named} and {len(labels) - most} more labels"

"""Labels that are no classes are recognised, and classes are left alone."""

from __future__ import annotations

import pytest

from tasks.ml.data import label_kinds
from tasks.ml.data.label_kinds import Kind

SETS = ["good", "good|long", "odd", "long|odd", "none", "good|odd"]


@pytest.mark.parametrize(
    ("labels", "kind", "rows"),
    [
        (["3.1", "4", "0.5"] * 9, Kind.SCORES, 18),
        (["-1", "1e-3"] * 9, Kind.SCORES, 9),
        (SETS * 9, Kind.SETS, 27),
        (["a; b", "a", "b;c ", "c"] * 9, Kind.SETS, 18),
        (["1", "nan", "0"] * 9, Kind.MISSING, 9),
        (["x", "y", "NaN"] * 9, Kind.MISSING, 9),
        (["1", "0", "None"] * 9, Kind.MISSING, 9),
        (["1", "0", "nan", "null"] * 9, Kind.MISSING, 18),
        ([f"id {index}" for index in range(30)], Kind.UNIQUE, 30),
        ([str(index // 2 if index < 10 else index) for index in range(30)], Kind.UNIQUE, 20),
    ],
)
def test_labels_that_are_no_classes(labels: list[str], kind: Kind, rows: int) -> None:
    found = label_kinds.look(labels)
    assert (found.kind, len(found.rows)) == (kind, rows)


@pytest.mark.parametrize(
    "labels",
    [
        ["yes", "no"],
        ["0", "1"],
        ["0.0", "1.0"],
        ["none", "some"],  # a word for a class among words
        ["Nan", "Bob"],
        ["yes | <b>good</b>", 'no, "bad"'],
        ["Arts, Crafts", "Home, Garden", "Toys"],  # separators within names
        ["a|high", "a|low", "b|high", "b|low"],  # as many parts in each: one label of two words
        ["1.0", "1.0-beta"],
        ["v1.5", "v2.5"],
    ],
)
def test_classes(labels: list[str]) -> None:
    assert label_kinds.look(labels * 20).kind is Kind.CLASSES

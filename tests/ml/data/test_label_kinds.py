"""Labels that are no classes are recognised, and classes are left alone."""

from __future__ import annotations

import logging
from itertools import product

import pytest

from tasks.contracts.base import FeatherweightError
from tasks.ml.data import label_kinds
from tasks.ml.data.label_kinds import Kind
from tasks.ml.data.tables import Table

SETS = ["good", "good|long", "odd", "long|odd", "none", "good|odd"]


def table(labels: list[str], origin: str = "rows.csv") -> Table:
    texts = [f"text {index}" for index in range(len(labels))]
    return Table(origin, "line", range(2, len(labels) + 2), texts, labels, "label")


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


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["1", "3.5"] * 9, "rows.csv, line 3, .*'3.5' looks like a score, .*9 of 18 rows .* regression"),
        (SETS * 9, r"line 3, .*'good\|long' looks like several labels, separated by '\|' .* in data.label"),
        (
            ["1", "nan", "0"] * 9,
            "line 3, .*'nan' looks like a missing label .9 of 27 rows.; remove these rows, or name",
        ),
        ([f"id {i}" for i in range(30)], "line 2, .*'id 0' is the label of this row alone, .* in data.label"),
    ],
)
def test_what_they_look_like_and_what_to_set_is_said(labels: list[str], message: str) -> None:
    with pytest.raises(FeatherweightError, match=message) as caught:
        label_kinds.as_classes({"train": table(labels)})
    assert "\n" not in str(caught.value)


def test_splits_are_judged_together() -> None:
    """A test file of one row for each class is nothing odd."""
    classes = [f"class {index}" for index in range(30)]
    own = {"train": table(classes * 9), "test": table(classes, "test.csv")}
    assert label_kinds.as_classes(own) == own
    with pytest.raises(
        FeatherweightError, match=r"test\.csv, line 2, .*'nan' looks like a missing label \(1 of 271 rows"
    ):
        label_kinds.as_classes({**own, "test": table(["nan"], "test.csv")})


def test_whole_numbers_written_with_a_fraction_are_integers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="featherweight"):
        found = label_kinds.as_classes({"train": table(["1.0", "0.0", "2"]), "test": table(["0", "1"])})
    assert {name: one.labels for name, one in found.items()} == {"train": ["1", "0", "2"], "test": ["0", "1"]}
    assert "labels such as 0.0 are whole numbers written with a fraction: taken as the classes 0, 1, 2" in caplog.text
    long = ["9007199254740993.0", "9007199254740992.0"]
    assert label_kinds.as_classes({"train": table(long)})["train"].labels == [one.removesuffix(".0") for one in long]
    odd = ["".join(pair) for pair in product("+-", "01")]
    assert label_kinds.as_classes({"train": table(odd)})["train"].labels == odd


def test_labels_that_differ_only_in_how_they_are_written_are_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="featherweight"):
        label_kinds.as_classes({"train": table(["pos", "Pos", "neg", "gro\u00df", "GROSS", "a b", "a  b"] * 3)})
        assert len(caplog.records) == 3
        assert "labels 'Pos', 'pos' are classes of their own" in caplog.text
        caplog.clear()
        label_kinds.as_classes({"train": table(["pos", "neg", "neutral"] * 3)})
    assert not caplog.records

"""A column is what its values say it is, and where they do not say it, what its name says."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from tasks.ml.data.column_kinds import ColumnKind, describe, percent

TEXTS = [f"the film was number {index} of many" for index in range(40)]
CHINESE = [f"这部电影真的很好看{index}" for index in range(40)]


@pytest.mark.parametrize(
    ("name", "values", "kind", "what"),
    [
        ("a", TEXTS, ColumnKind.TEXT, "texts of about 7 words"),
        ("a", CHINESE, ColumnKind.TEXT, "texts of about 9 characters"),
        ("query", [f"weather{index} berlin" for index in range(40)], ColumnKind.TEXT, "texts of about 2 words"),
        ("person", [f"Ada{index} Lovelace" for index in range(40)], ColumnKind.OWN, "a value of its own in most rows"),
        ("a", ["good", "bad", "bad ", "bad"], ColumnKind.CLASSES, "2 values: bad 75 %, good 25 %"),
        ("a", ["card payment wrong rate", "card arrival much delayed"] * 40, ColumnKind.CLASSES, "2 values: "),
        ("a", [True, False, True], ColumnKind.CLASSES, "2 values: True 67 %"),
        ("a", [1, 2, 3, 4, 5] * 9, ColumnKind.CLASSES, "5 values: 1 20 %"),
        ("a", ["0.0", "1.0"] * 9, ColumnKind.CLASSES, "2 values: 0 50 %, 1 50 %"),
        ("a", [*range(77)] * 2, ColumnKind.CLASSES, "77 values: "),
        ("a", [*range(0, 77, 2)] * 2, ColumnKind.SCORES, "numbers from 0 to 76"),
        ("a", ["0.5", "3", "4"], ColumnKind.SCORES, "numbers from 0.5 to 4"),
        ("a", ["0,5", "3,0", "4"], ColumnKind.SCORES, "numbers from 0.5 to 4"),
        ("a", [1e400, 1.0], ColumnKind.CLASSES, "2 values: "),
        ("a", [*range(100)], ColumnKind.OWN, "a whole number of its own in every row"),
        ("score", [*range(0, 300, 3)], ColumnKind.SCORES, "numbers from 0 to 297"),
        (
            "a",
            [f"id-{index}" for index in range(40)],
            ColumnKind.OWN,
            "a value of its own in most rows, such as 'id-0'",
        ),
        ("a", [f"2026-11-{day:02} 10:30" for day in range(1, 29)], ColumnKind.DATES, "dates"),
        ("a", [datetime.date(2026, 11, 1), datetime.datetime(2026, 11, 2, 3)], ColumnKind.DATES, "dates"),
        ("a", ["x", "x"], ColumnKind.CONSTANT, "'x' in every row"),
        ("a", [["x"], ["x", "y"]], ColumnKind.LISTS, "lists, 1.5 values long on average"),
        ("a", [None, "", " ", float("nan")], ColumnKind.EMPTY, "no values"),
        ("a", [{"x": 1}], ColumnKind.OTHER, "values of another kind, such as dict"),
        ("a", ["x", ["x"]], ColumnKind.OTHER, "values of another kind, such as list"),
        ("a", [b"x"], ColumnKind.OTHER, "values of another kind, such as bytes"),
    ],
)
def test_a_column_is_told_by_its_values(name: str, values: list[Any], kind: ColumnKind, what: str) -> None:
    found = describe(name, values)
    assert found.kind is kind
    assert found.what.startswith(what)


def test_missing_values_are_counted_and_left_out() -> None:
    found = describe("a", ["x", None, "y", "", "x", float("nan")])
    assert (found.kind, found.missing) == (ColumnKind.CLASSES, 3)
    assert found.what == "2 values: x 67 %, y 33 %"


@pytest.mark.parametrize("name", ["label", "Label", "gold_label", "airlineSentiment", "label2", "is spam"])
def test_a_name_says_that_a_column_is_the_label(name: str) -> None:
    from tasks.ml.data.column_kinds import LABEL_NAMES

    assert describe(name, ["x"]).is_called(LABEL_NAMES)
    assert not describe("labelled-by", ["x"]).is_called(LABEL_NAMES)


def test_a_share_is_never_rounded_to_none_or_all() -> None:
    shares = [0, 0.0001, 0.004, 0.02, 0.5, 0.996, 0.99995, 1]
    assert [percent(share) for share in shares] == [
        "0 %", "0.010 %", "0.40 %", "2 %", "50 %", "99.60 %", "99.995 %", "100 %"
    ]  # fmt: skip

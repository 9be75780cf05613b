"""Labels that are no classes are refused with what they look like, and classes are taken as they are meant."""

from __future__ import annotations

import logging
from itertools import product

import pytest

from tasks.contracts.base import FeatherweightError
from tasks.ml.data.tables import Table
from tasks.ml.problems import class_labels

SETS = ["good", "good|long", "odd", "long|odd", "none", "good|odd"]


def table(labels: list[str], origin: str = "rows.csv") -> Table:
    texts = [f"text {index}" for index in range(len(labels))]
    return Table(origin, "line", range(2, len(labels) + 2), texts, labels, "label")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["1", "3.5"] * 9, "rows.csv, line 3, .*'3.5' looks like a score, .*9 of 18 rows .* problem: text-regression"),
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
        class_labels.as_classes({"train": table(labels)})
    assert "\n" not in str(caught.value)


def test_splits_are_judged_together() -> None:
    """A test file of one row for each class is nothing odd."""
    classes = [f"class {index}" for index in range(30)]
    own = {"train": table(classes * 9), "test": table(classes, "test.csv")}
    assert class_labels.as_classes(own) == own
    with pytest.raises(
        FeatherweightError, match=r"test\.csv, line 2, .*'nan' looks like a missing label \(1 of 271 rows"
    ):
        class_labels.as_classes({**own, "test": table(["nan"], "test.csv")})


def test_whole_numbers_written_with_a_fraction_are_integers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="featherweight"):
        found = class_labels.as_classes({"train": table(["1.0", "0.0", "2"]), "test": table(["0", "1"])})
    assert {name: one.labels for name, one in found.items()} == {"train": ["1", "0", "2"], "test": ["0", "1"]}
    assert "labels such as 0.0 are whole numbers written with a fraction: taken as the classes 0, 1, 2" in caplog.text
    long = ["9007199254740993.0", "9007199254740992.0"]
    assert class_labels.as_classes({"train": table(long)})["train"].labels == [one.removesuffix(".0") for one in long]
    odd = ["".join(pair) for pair in product("+-", "01")]
    assert class_labels.as_classes({"train": table(odd)})["train"].labels == odd


def test_labels_that_differ_only_in_how_they_are_written_are_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="featherweight"):
        class_labels.as_classes({"train": table(["pos", "Pos", "neg", "gro\u00df", "GROSS", "a b", "a  b"] * 3)})
        assert len(caplog.records) == 3
        assert "labels 'Pos', 'pos' are classes of their own" in caplog.text
        caplog.clear()
        class_labels.as_classes({"train": table(["pos", "neg", "neutral"] * 3)})
    assert not caplog.records

"""A text decides by itself which split it is in, and is there once."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from typing import Any

import pytest

from tasks.contracts.base import FeatherweightError
from tasks.ml.data import splitting
from tasks.ml.data.tables import Table
from tasks.ml.problems import text_classification

FRACTIONS: dict[str, Any] = {"test": 0.2, "selection": 0.1, "calibration": 0.05}


def table(rows: list[tuple[str, str]], origin: str = "rows.csv") -> Table:
    return Table(origin, "line", range(2, len(rows) + 2), [t for t, _ in rows], [label for _, label in rows], "label")


def unlabeled(texts: list[str]) -> Table:
    return Table("more.csv", "line", range(2, len(texts) + 2), texts, [], "")


def divide(tables: dict[str, Table], *more: Any, **options: Any) -> splitting.Division:
    return splitting.divide(text_classification.targets(tables), *more, **options)


def rows(count: int, prefix: str = "text") -> list[tuple[str, str]]:
    return [(f"{prefix} {index}", "ab"[index % 2]) for index in range(count)]


def texts(division: splitting.Division) -> dict[str, list[str]]:
    return {name: [row.text for row in split] for name, split in division.splits.items()}


def test_row_order_changes_nothing() -> None:
    shuffled = rows(500)
    random.Random(7).shuffle(shuffled)
    first = divide({"train": table(rows(500))}, **FRACTIONS)
    assert first.splits == divide({"train": table(shuffled)}, **FRACTIONS).splits


def test_more_rows_move_no_row_to_another_split_where_there_are_many() -> None:
    def moved(count: int) -> int:
        few = texts(divide({"train": table(rows(count))}, **FRACTIONS))
        many = texts(divide({"train": table(rows(2 * count))}, **FRACTIONS))
        return sum(len(set(few[name]) - set(many[name])) for name in splitting.SPLITS)

    assert moved(10_000) == 0
    assert moved(200) <= 20, "the share of a label with few rows counts for more"


def by_label(division: splitting.Division, name: str) -> Counter[str]:
    return Counter(row.label for row in division.splits[name])


def drawn(rng: random.Random, labels: int, each: int) -> list[tuple[str, str]]:
    """Rows of random text, a number of each label, shuffled."""
    found = [(f"{rng.getrandbits(64):x}", f"label {label}") for label in range(labels) for _ in range(each)]
    rng.shuffle(found)
    return found


@pytest.mark.parametrize(("labels", "each", "sets"), [(50, 10, 20), (50, 20, 10), (2, 10, 200)])
def test_every_label_has_its_share_of_every_split_however_few_its_rows(labels: int, each: int, sets: int) -> None:
    rng = random.Random(labels + each)
    for _ in range(sets):
        division = divide({"train": table(drawn(rng, labels, each))}, test=0.2, selection=0.08, calibration=0.02)
        assert set(by_label(division, "test").values()) == {each // 5}
        shares = {"train": 0.7, "calibration": 0.02, "selection": 0.08}
        for name, share in shares.items():
            found = by_label(division, name)
            assert all(abs(found[label] - share * each) < 1 + (labels == 2) for label in division.targets.names), name
            assert sum(found.values()) == pytest.approx(share * each * labels, abs=1.5 + 3 * (labels / 4) ** 0.5)
            assert found


def test_a_rare_label_is_divided_like_a_frequent_one() -> None:
    data = [(text, "rare" if index % 67 == 0 else "frequent") for index, (text, _) in enumerate(rows(2010))]
    division = divide({"train": table(data)}, **FRACTIONS)
    assert by_label(division, "test")["rare"] == 6
    assert by_label(division, "selection")["rare"] == 3
    assert division.warnings == []


@pytest.mark.parametrize(("labels", "each"), [(2, 3), (3, 2), (40, 2)])
def test_the_fewest_rows_still_fill_every_split(labels: int, each: int) -> None:
    for seed in range(50):
        division = divide({"train": table(drawn(random.Random(seed), labels, each))}, **FRACTIONS)
        assert all(division.splits[name] for name in splitting.SPLITS)
        assert len(by_label(division, "train")) == labels


def test_labels_that_test_says_little_about_are_named() -> None:
    data = [*rows(300), *((f"few {index}", "c") for index in range(6)), ("once", "d")]
    division = divide({"train": table(data)}, **FRACTIONS)
    absent, few = division.warnings
    assert "no row of 'd'" in absent
    assert "fewer than 5 rows of 'c'" in few
    assert "add rows with these labels" in few
    own = {"train": table(rows(300)), "test": table(rows(40, "held out")[::2], "test.csv")}
    (absent,) = divide(own, **FRACTIONS).warnings
    assert "the test split has no row of 'b'" in absent
    assert "add rows to the test file" in absent


def test_a_row_limit_keeps_two_of_every_label() -> None:
    data = [*rows(3000), *((f"few {index}", "c") for index in range(3))]
    division = divide({"train": table(data)}, max_rows=100, **FRACTIONS)
    assert sum(len(split) for split in division.splits.values()) == 100
    assert by_label(division, "train")["c"] == by_label(division, "test")["c"] == 1


def test_fractions_are_kept_and_every_row_is_in_one_split() -> None:
    division = texts(divide({"train": table(rows(10_000))}, **FRACTIONS))
    assert sorted(text for split in division.values() for text in split) == sorted(text for text, _ in rows(10_000))
    shares = {name: len(split) / 10_000 for name, split in division.items()}
    expected = {"train": 0.65, "calibration": 0.05, "selection": 0.1, "test": 0.2, "unlabeled": 0.0}
    assert shares == pytest.approx(expected, abs=0.015)  # 3.7 standard deviations of the largest


def test_spelling_of_white_space_and_accents_makes_no_other_text() -> None:
    composed, decomposed = "caf\u00e9  au lait", unicodedata.normalize("NFD", " caf\u00e9 au\nlait")
    assert composed != decomposed
    assert splitting.key(composed) == splitting.key(decomposed)
    assert splitting.key("cafe au lait") != splitting.key(composed)


def test_duplicates_are_kept_once_and_conflicting_labels_not_at_all() -> None:
    data = [*rows(200), ("text 0", "a"), ("text  2", "a"), ("text 4", "b")]
    for order in (data, data[::-1]):
        division = divide({"train": table(order)}, **FRACTIONS)
        everything = [text for split in texts(division).values() for text in split]
        assert len(everything) == len(set(everything)) == 199
        assert "text 0" in everything
        assert "text  2" in everything, "the smallest spelling, whatever the order"
        assert "text 4" not in everything
        assert division.dropped["duplicates"] == 2
        assert division.dropped["conflicting_labels"] == 2


def test_mostly_conflicting_labels_are_an_error() -> None:
    with pytest.raises(
        FeatherweightError, match=r"rows\.csv, column 'label': 50 of 100 texts .*line 2 and rows\.csv, line 102"
    ):
        divide({"train": table([*rows(100), *[(t, "c") for t, _ in rows(50)]])}, **FRACTIONS)


def test_a_test_split_of_its_own_is_kept_and_taken_out_of_the_rest() -> None:
    own = {"train": table(rows(300)), "test": table([*rows(20), *rows(30, "held out")], "test.csv")}
    division = divide(own, **FRACTIONS)
    found = texts(division)
    assert set(found["test"]) == {text for text, _ in [*rows(20), *rows(30, "held out")]}
    assert len(found["train"]) + len(found["selection"]) + len(found["calibration"]) == 280
    assert division.dropped["in_another_split"] == 20


def test_a_selection_split_of_its_own_is_kept() -> None:
    own = {"train": table(rows(300)), "selection": table(rows(30, "dev"), "dev.csv")}
    found = texts(divide(own, **FRACTIONS))
    assert set(found["selection"]) == {text for text, _ in rows(30, "dev")}
    assert found["test"]
    assert found["calibration"]


def test_unlabeled_text_that_is_labeled_elsewhere_is_dropped() -> None:
    labeled = rows(300)
    more = [text for text, _ in labeled] + ["new", "new ", "newer"]
    division = divide({"train": table(labeled)}, [unlabeled(more), unlabeled(["newer", "newest"])], **FRACTIONS)
    assert {row.text.strip() for row in division.splits["unlabeled"]} == {"new", "newer", "newest"}
    assert {row.label for row in division.splits["unlabeled"]} == {""}
    assert division.dropped["unlabeled_in_another_split"] == 301
    assert division.dropped["unlabeled_duplicates"] == 1


def test_a_row_limit_keeps_the_same_rows_and_the_fractions() -> None:
    shuffled = rows(4000)
    random.Random(7).shuffle(shuffled)
    limited = divide({"train": table(rows(4000))}, max_rows=1000, **FRACTIONS)
    assert limited.splits == divide({"train": table(shuffled)}, max_rows=1000, **FRACTIONS).splits
    assert sum(map(len, limited.splits.values())) == 1000
    assert len(limited.splits["test"]) / 1000 == pytest.approx(0.2, abs=0.05)
    whole = texts(divide({"train": table(rows(4000))}, **FRACTIONS))
    assert all(set(split) <= set(whole[name]) for name, split in texts(limited).items())


def test_integer_labels_are_ordered_by_value() -> None:
    numbered = [(f"text {index}", str(index % 12)) for index in range(1200)]
    assert divide({"train": table(numbered)}, **FRACTIONS).targets.names == [str(index) for index in range(12)]
    named = [(text, {"a": "b10", "b": "B9"}[label]) for text, label in rows(300)]
    assert divide({"train": table(named)}, **FRACTIONS).targets.names == ["B9", "b10"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": table([("one", "a"), ("two", "a")])}, "every row has the label 'a'; at least two labels"),
        (
            {"train": table(rows(300)), "test": table([("one", "a"), ("two", "c")], "test.csv")},
            "test.csv, line 3, column 'label': label 'c' is not in rows.csv, so it cannot be learned; .* are a, b",
        ),
        ({"train": table(rows(2))}, "too few rows: none of 2 distinct texts can be spared for the .* split; add rows"),
        (
            {"train": table([*rows(300), ("rare", "c")]), "test": table([("rare", "c"), *rows(9)], "test.csv")},
            "too few rows per label: 'c' has 1 distinct texts and none of them is in the train split",
        ),
    ],
)
def test_labels_and_rows_that_cannot_be_learned_from_are_refused(data: dict[str, Table], message: str) -> None:
    with pytest.raises(FeatherweightError, match=message):
        divide(data, **FRACTIONS)

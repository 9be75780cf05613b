from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tasks.ml.data import augmentation
from tasks.ml.data.augmentation import Draft

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


def to_upper(drafts: Sequence[Draft]) -> list[list[list[str]]]:
    """Proposes the word itself in capitals, so that a test sees where something was replaced."""
    return [[[draft.text[start:end].upper()] for start, end in draft.characters] for draft in drafts]


def test_words_are_whole_tokens_of_letters(tokenizer: Any) -> None:
    # "unfunny" is three pieces, and a comma no word.
    [draft] = augmentation.words(["The film , unfunny"], tokenizer, max_length=16)
    assert [draft.text[start:end] for start, end in draft.characters] == ["The", "film"]
    assert [tokenizer.convert_ids_to_tokens(draft.input_ids[place]) for place in draft.places] == ["the", "film"]


def test_words_beyond_the_cut_are_not_found(tokenizer: Any) -> None:
    [draft] = augmentation.words(["the film is dull"], tokenizer, max_length=4)
    assert [draft.text[start:end] for start, end in draft.characters] == ["the", "film"]


def test_only_words_that_were_found_are_replaced_and_the_rest_stays(tokenizer: Any) -> None:
    found = augmentation.words(["the film , unfunny and  flat!"], tokenizer, max_length=16)
    texts = augmentation.replacements(found, 40, to_upper, seed=0)
    assert len(texts) == 40
    assert {text.lower() for text in texts} == {"the film , unfunny and  flat!"}
    assert all("unfunny" in text and text != text.lower() for text in texts)
    shares = [sum(word.isupper() for word in text.replace("!", "").split()) / 4 for text in texts]
    assert sum(shares) / 40 == pytest.approx(augmentation.REPLACED, abs=0.12)


def test_same_seed_same_replacements(tokenizer: Any) -> None:
    found = augmentation.words(["a very great film", "the plot is dull"] * 5, tokenizer, max_length=16)
    once, again, other = (augmentation.replacements(found, 1, to_upper, seed=seed) for seed in (0, 0, 1))
    assert once == again != other


def test_texts_without_words_and_words_without_substitutes_stay_away(tokenizer: Any) -> None:
    assert augmentation.words([], tokenizer, max_length=8) == []
    found = augmentation.words(["...", "great film"], tokenizer, max_length=8)
    nothing = augmentation.replacements(found, 3, lambda drafts: [[[] for _ in d.places] for d in drafts], seed=0)
    assert nothing == ["great film"] * 3
    assert augmentation.unseen(nothing, ["great film"]) == []


def test_unseen_leaves_out_what_is_known_or_said_twice() -> None:
    assert augmentation.unseen(["a  film", "new", "new ", "other"], ["a film"]) == ["new", "other"]

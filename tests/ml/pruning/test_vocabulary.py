from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from tasks.ml.pruning import kept_tokens, vocabulary


def test_the_same_vocabulary_changes_nothing(tokenizer: Any, texts: list[str]) -> None:
    found = vocabulary.safety(tokenizer, tokenizer, texts)
    assert found["token_growth"] == 1.0
    assert found["unknown_rate"] == found["unknown_rate_before"] == 0.0
    assert found["tokens_per_text"] == pytest.approx(sum(len(tokenizer.tokenize(text)) for text in texts) / len(texts))


def test_words_that_were_cut_take_more_tokens_and_stay_known(
    model: nn.Module, tokenizer: Any, texts: list[str]
) -> None:
    tokens = kept_tokens.choose_tokens(tokenizer, tokenizer(texts[:1])["input_ids"], keep=0.8)
    _, smaller = kept_tokens.keep_tokens(model, tokenizer, tokens)
    found = vocabulary.safety(tokenizer, smaller, texts)
    assert found["token_growth"] > 1
    assert found["unknown_rate"] == 0.0


def test_unknown_pieces_are_counted(tokenizer: Any) -> None:
    found = vocabulary.safety(tokenizer, tokenizer, ["a film", "a ß"])
    assert found["unknown_rate"] == 0.25


def test_foreign_text_is_plenty_and_prose() -> None:
    texts = vocabulary.foreign_texts()
    assert len(texts) == vocabulary.NUM_TEXTS
    assert all(len(text.split()) >= 8 for text in texts)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from tasks.contracts.base import FeatherweightError
from tasks.ml.data import augmentation, substitutes
from tasks.ml.pruning import kept_tokens


def found(texts: list[str], tokenizer: Any) -> list[augmentation.Draft]:
    return augmentation.words(texts, tokenizer, max_length=16)


def test_neighbours_are_the_nearest_words_of_the_texts(tokenizer: Any, texts: list[str]) -> None:
    table = torch.randn(len(tokenizer), 8, generator=torch.Generator().manual_seed(0))
    table[tokenizer.convert_tokens_to_ids("dull")] = 3 * table[tokenizer.convert_tokens_to_ids("great")]
    drafts = found(texts, tokenizer)
    present = {draft.text[start:end] for draft in drafts for start, end in draft.characters}
    proposals = substitutes.neighbours(table, drafts, count=4)(drafts)
    for draft, proposed in zip(drafts, proposals, strict=True):
        for (start, end), words in zip(draft.characters, proposed, strict=True):
            own = draft.text[start:end]
            assert own not in words
            assert set(words) <= present
            rows = table[tokenizer.convert_tokens_to_ids([own, *words])]
            nearness = torch.nn.functional.cosine_similarity(rows[:1], rows[1:])
            assert (nearness.diff() <= 1e-6).all()
            if own in ("dull", "great"):
                assert words[0] == {"dull": "great", "great": "dull"}[own]


def test_a_cut_vocabulary_gives_the_same_texts(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    """So that a teacher asked by a later stage has answered already."""
    cut, smaller = kept_tokens.keep_tokens(
        model, tokenizer, kept_tokens.choose_tokens(tokenizer, tokenizer(texts)["input_ids"], keep=0.95)
    )
    made = []
    for one, encoder in ((model, tokenizer), (cut, smaller)):
        drafts = found(texts, encoder)
        propose = substitutes.neighbours(one.bert.embeddings.word_embeddings.weight, drafts)
        made.append(augmentation.replacements(drafts, 3, propose, seed=0))
    assert made[0] == made[1]
    assert set(made[0]) - set(texts)


@pytest.fixture
def masked(tokenizer: Any) -> BertForMaskedLM:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32, initializer_range=0.2,
    )  # fmt: skip
    return BertForMaskedLM(config).eval()


def test_predictions_are_the_likeliest_words_in_masked_places(
    masked: BertForMaskedLM, tokenizer: Any, texts: list[str]
) -> None:
    drafts = found(texts, tokenizer)
    proposals = substitutes.predictions(masked, tokenizer, count=3)(drafts)
    for draft, proposed in zip(drafts, proposals, strict=True):
        ids = torch.tensor([draft.input_ids])
        ids[0, draft.places] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = masked(input_ids=ids).logits[0]
        for place, (start, end), words in zip(draft.places, draft.characters, proposed, strict=True):
            ranked = tokenizer.convert_ids_to_tokens(logits[place].argsort(descending=True).tolist())
            expected = [w for w in ranked if w.isalpha() and w != draft.text[start:end]][: len(words)]
            assert words == expected


def test_a_model_without_that_head_is_refused(
    tmp_path: Path, masked: BertForMaskedLM, model: Any, tokenizer: Any, texts: list[str]
) -> None:
    masked.save_pretrained(tmp_path / "masked")
    loaded = substitutes.load_masked(tmp_path / "masked")
    drafts = found(texts, tokenizer)
    assert substitutes.predictions(loaded, tokenizer)(drafts) == substitutes.predictions(masked, tokenizer)(drafts)
    model.bert.save_pretrained(tmp_path / "encoder")
    with pytest.raises(FeatherweightError, match=r"^teaching\.augmentation\.model: .* has no head that predicts"):
        substitutes.load_masked(tmp_path / "encoder")

"""Which tokens stay, and that texts whose tokens all stay are read as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import modeling, tokenization
from tasks.ml.pruning import kept_tokens
from tasks.ml.xray.architecture import Architecture


def encode(tokenizer: Any, texts: list[str]) -> Any:
    return tokenizer(texts, return_tensors="pt", padding=True)


def test_kept_texts_are_encoded_alike_and_others_fall_back(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    rows = tokenizer(texts[:2])["input_ids"]
    tokens = kept_tokens.choose_tokens(tokenizer, rows, keep=0.84)
    smaller, small_tokenizer = kept_tokens.keep_tokens(model, tokenizer, tokens)
    assert len(small_tokenizer) == len(tokens) < len(tokenizer)
    assert small_tokenizer.tokenize(texts[0]) == tokenizer.tokenize(texts[0])
    assert small_tokenizer.tokenize("acting")[0] == "a"
    assert "[UNK]" not in small_tokenizer.tokenize("unfunny acting")
    expected = model(**encode(tokenizer, texts[:2])).logits
    assert torch.equal(smaller(**encode(small_tokenizer, texts[:2])).logits, expected)


def test_tokens_that_a_tokenizer_names_beside_its_vocabulary_stay(tokenizer: Any, model: nn.Module) -> None:
    tokenizer.add_tokens(["<tag>"])
    named = set(tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<tag>"]))
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    # The same processor, inside another; and tokens that no setting calls special.
    description["post_processor"] = {"type": "Sequence", "processors": [description["post_processor"]]}
    description["added_tokens"] = [one for one in description["added_tokens"] if one["content"] in ("<tag>", "[PAD]")]
    core = Tokenizer.from_str(json.dumps(description))
    bare = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]")
    model.resize_token_embeddings(len(bare))  # type: ignore[operator]
    tokens = kept_tokens.choose_tokens(bare, [[7, 8, 9]], keep=0.1)
    assert named <= set(tokens)
    smaller, cut = kept_tokens.keep_tokens(model, bare, tokens)
    assert tokenization.ids_in(cut, bare).tolist() == tokens
    text = "a <tag> film"
    (whole,), (kept,) = (tokenization.encode([text], one, max_length=16) for one in (bare, cut))
    assert "<tag>" in bare.convert_ids_to_tokens(whole)
    assert "<tag>" in cut.convert_ids_to_tokens(kept)
    assert [cut.convert_ids_to_tokens(kept)[at] for at in (0, -1)] == ["[CLS]", "[SEP]"]
    assert smaller.config.vocab_size == len(cut)  # type: ignore[union-attr]


def test_positions_stay_where_the_id_of_padding_changes(tmp_path: Path, tokenizer: Any, texts: list[str]) -> None:
    """RoBERTa's first position is the id of padding and one."""
    torch.manual_seed(0)
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = description["model"]["vocab"]
    last = max(vocabulary.values())
    vocabulary["[PAD]"], vocabulary["with"] = last, 0
    description["added_tokens"][0]["id"] = last
    core = Tokenizer.from_str(json.dumps(description))
    moved = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")
    model = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=last + 1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=last + 40, pad_token_id=last, type_vocab_size=1, initializer_range=0.5,
        )
    ).eval()  # fmt: skip
    tokens = kept_tokens.choose_tokens(moved, moved(texts)["input_ids"], keep=0.97)
    smaller, cut = kept_tokens.keep_tokens(model, moved, tokens)
    assert cut.pad_token_id < moved.pad_token_id
    expected = model(**encode(moved, texts)).logits
    torch.testing.assert_close(smaller(**encode(cut, texts)).logits, expected)
    modeling.save(smaller, cut, tmp_path)
    reloaded = modeling.load(tmp_path, "text-classification")
    torch.testing.assert_close(reloaded(**encode(tokenization.load(tmp_path), texts)).logits, expected)
    config = json.loads((tmp_path / "config.json").read_text())
    assert Architecture.from_config(config).max_length == 39


def test_vocabulary_of_other_tokenizers_is_refused(model: nn.Module, tokenizer: Any) -> None:
    tokenizer._tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(FeatherweightError, match=r"the base model's is WordLevel; use 1"):
        kept_tokens.keep_tokens(model, tokenizer, [0, 1])

"""A BERT of two layers with random weights, and a WordPiece tokenizer of a few dozen pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

TEXT = "a the film is was not very great dull story acting plot funny moving flat and but of with"
WORDS = TEXT.split()
CHARACTERS = list("abcdefghijklmnopqrstuvwxyz.,")
PIECES = ["un", "##un", "##ny", "##ing", "##ly"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    tokens = dict.fromkeys([*SPECIAL, *CHARACTERS, *(f"##{c}" for c in CHARACTERS), *PIECES, *WORDS])
    core = Tokenizer(models.WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=2,
        initializer_range=0.2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config).eval()


@pytest.fixture
def texts() -> list[str]:
    return [
        "a very great film",
        "the plot is dull and flat",
        "not funny",
        "moving story with great acting , but unfunny",
    ]


@pytest.fixture
def bundle(tmp_path: Path, model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The model saved as a torch bundle."""
    from tasks.ml.models import modeling

    directory = tmp_path / "bundle"
    directory.mkdir()
    modeling.save(model, tokenizer, directory)
    return directory

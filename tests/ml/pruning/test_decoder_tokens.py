"""A decoder with fewer tokens says of those what the whole one says of them, on disk, in blocks and as a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, GPT2Tokenizer, LlamaTokenizer

from tasks.contracts.base import FeatherweightError
from tasks.ml.graph import decoder_export, decoding
from tasks.ml.models import decoders, modeling, tokenization
from tasks.ml.pruning import kept_tokens
from tasks.ml.quantization import weights_alone
from tasks.ml.runtime import sessions
from tests.ml import bpe_tokenizers
from tests.ml.bpe_tokenizers import TEXTS
from tests.ml.tiny_decoders import LAYERS, MODELS

FILLED = 9
"""Rows of the table beyond the tokenizer's tokens."""
NAMES = ["llama", "llama, tied", "gemma", "gpt2"]


def decoder(name: str, tokenizer: Any) -> nn.Module:
    """A random decoder of ``MODELS`` with rows for a tokenizer's tokens and some more; a head that is not tied has a
    bias."""
    kind, sizes = MODELS[name]
    torch.manual_seed(0)
    # Ids of tokens that are not among the first, as Llama 3 has them.
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
           "eos_token_id": [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<tag>")]}  # fmt: skip
    config = AutoConfig.for_model(kind, **sizes | ids | {"vocab_size": len(tokenizer) + FILLED})
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.15)
    if name == "llama":
        model.lm_head.bias = nn.Parameter(torch.randn(len(tokenizer) + FILLED))
    return model  # type: ignore[no-any-return]


@pytest.fixture(params=[True, False], ids=["bytes", "sentencepiece"])
def whole(request: Any) -> Any:
    """A tokenizer with an added token behind all others."""
    tokenizer = bpe_tokenizers.build(byte_level=request.param)
    tokenizer.add_tokens(["<tag>"])
    return tokenizer


def rows_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenization.encode(texts, tokenizer, max_length=40)


@torch.no_grad()
def says(model: nn.Module, row: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([row])).logits[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_kept_logits_are_what_they_were(name: str, whole: Any, tmp_path: Path) -> None:
    model, texts = decoder(name, whole), [text[:60] for text in TEXTS[:4]]
    rows = rows_of(whole, texts)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tokens = kept_tokens.choose_tokens(whole, rows, keep=0.8)
    smaller, cut = kept_tokens.keep_tokens(model, whole, tokens)
    assert len(tokens) == len(cut) == round(0.8 * len(whole))
    assert tokenization.ids_in(cut, whole).tolist() == tokens
    for row, again in zip(rows, rows_of(cut, texts), strict=True):
        assert [tokens[token] for token in again] == row
        assert torch.equal(says(smaller, again), says(model, row)[:, tokens])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "the argument is left"
    family = decoders.of_model(smaller)
    assert (family.head(smaller).data_ptr() == family.table(smaller).data_ptr()) == (name != "llama")
    if name != "llama":  # whose bias no configuration describes
        modeling.save(smaller, cut, tmp_path)
        again_model, again_cut = modeling.load(tmp_path, "causal-lm"), tokenization.load(tmp_path)
        assert again_cut.get_vocab() == cut.get_vocab()
        (row,) = rows_of(again_cut, texts[:1])
        assert torch.equal(says(again_model, row), says(smaller, row))


def test_settings_name_the_same_tokens(whole: Any) -> None:
    model: Any = decoder("llama, tied", whole)
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=0, bos_token_id=len(whole) + 1, suppress_tokens=[1]
    )
    named = ["<pad>", "<s>", "</s>", "<tag>"]
    smaller, cut = kept_tokens.keep_tokens(model, whole, kept_tokens.choose_tokens(whole, [], keep=1e-9))
    pad, start, end, tag = cut.convert_tokens_to_ids(named)
    assert tag == len(cut) - 1 < whole.convert_tokens_to_ids("<tag>")
    config: Any = smaller.config
    assert config.vocab_size == len(cut)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (pad, start, [end, tag])
    generation: Any = smaller.generation_config
    assert (generation.eos_token_id, generation.pad_token_id) == ([end, tag], pad)
    assert generation.bos_token_id is None, "it was a row that no text has"
    assert decoder_export.ends(config, cut) == [end, tag]
    assert decoders.of_model(smaller).token_embedding(smaller).padding_idx == pad
    assert model.config.vocab_size == len(whole) + FILLED


@pytest.mark.parametrize("kind", [GPT2Tokenizer, LlamaTokenizer])
def test_tokenizers_that_transformers_builds_anew_are_cut(kind: Any, tmp_path: Path) -> None:
    described = bpe_tokenizers.described(byte_level=kind is GPT2Tokenizer)
    merges = [tuple(merge) for merge in described["merges"]]
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if kind is GPT2Tokenizer:
        special["unk_token"] = "</s>"
    built = kind(vocab=described["vocab"], merges=merges, **special)
    tokenization.save(built, tmp_path)
    whole = tokenization.load(tmp_path)
    rows = rows_of(whole, TEXTS[:10])
    cut, _ = kept_tokens.cut_tokenizer(whole, kept_tokens.choose_tokens(whole, rows, keep=0.8))
    known = cut.get_vocab().keys()
    for row, again in zip(rows, rows_of(cut, TEXTS[:10]), strict=True):
        before = whole.convert_ids_to_tokens(row)
        assert known >= {*before}
        assert cut.convert_ids_to_tokens(again) == before


@pytest.mark.parametrize("name", ["llama, tied", "gemma"])
@pytest.mark.parametrize("bits", [4, 8])
def test_any_number_of_rows_is_stored_in_blocks(name: str, bits: int, tmp_path: Path) -> None:
    """Blocks divide the columns of table and head; rows are whatever was kept."""
    whole = bpe_tokenizers.build(byte_level=True)
    whole.add_tokens(["<tag>"])
    tokens = kept_tokens.choose_tokens(whole, [], keep=0.7001)
    tokens = tokens[: len(tokens) - 1 + len(tokens) % 2]
    assert len(tokens) % 2, "an odd number"
    smaller: Any = decoder(name, whole)
    if tokens[-1] != whole.convert_tokens_to_ids("<tag>"):
        tokens[-1] = whole.convert_tokens_to_ids("<tag>")
    smaller, cut = kept_tokens.keep_tokens(smaller, whole, tokens)
    rows = rows_of(cut, TEXTS[:4])
    codes = weights_alone.decide(
        smaller, rows, bits=4, block_size=32, table_bits=bits, rounding="clipped", length=40, exact_inputs=True
    )
    assert weights_alone.num_bytes(smaller, codes) < sum(4 * one.numel() for one in smaller.parameters()) / 3
    ir.save(decoder_export.build(smaller, codes), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=[sessions.CPU])
    sizes = decoders.attention(smaller)
    empty = np.zeros((1, sizes.kv_heads, 0, sizes.head_size), dtype=np.float32)
    feed = {one: empty for index in range(LAYERS) for one in decoding.past(index)}
    ids = np.array(rows[:1])
    (found,) = session.run(["logits"], feed | {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert found.shape == (1, len(rows[0]), len(tokens))
    wanted = says(smaller, rows[0]).numpy()
    assert np.abs(found[0] - wanted).max() < 0.05 * np.abs(wanted).max()


def test_a_vocabulary_that_cannot_be_cut_is_refused() -> None:
    described = bpe_tokenizers.described(byte_level=True) | {"dropout": 0.1}
    whole = bpe_tokenizers.build(byte_level=True, model=described)
    for attempt in (
        lambda: kept_tokens.choose_tokens(whole, [], keep=0.5),
        lambda: kept_tokens.num_tokens(whole, keep=0.5),
        lambda: kept_tokens.cut_tokenizer(whole, range(len(whole))),
    ):
        with pytest.raises(FeatherweightError, match=r"pruning.keep_vocabulary: merges with dropout 0.1.*; use 1"):
            attempt()

"""Token tables of fewer columns: what they lose, and that they survive training, disk and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import factorization, families, modeling
from tasks.ml.models.quantization_spec import INT8_DYNAMIC, INT8_STATIC, LinearScheme, Spec, plan
from tasks.ml.pruning import kept_tokens
from tasks.ml.xray import cost_model
from tasks.ml.xray.architecture import Architecture
from tests.ml.exporting import median_difference
from tests.ml.processes import FOR_MODEL, lesson, train


def table(model: nn.Module) -> nn.Embedding:
    return families.of("bert").token_embedding(model)


def encode(tokenizer: Any, texts: list[str]) -> Any:
    return tokenizer(texts, return_tensors="pt", padding=True)


def test_a_table_of_low_rank_loses_nothing(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    count, hidden = table(model).weight.shape
    with torch.no_grad():
        table(model).weight.copy_(torch.randn(count, 8) @ torch.randn(8, hidden) / 10)
    smaller = factorization.factorize(model, 8, rows=[])
    assert (factorization.rank(model), factorization.rank(smaller)) == (0, 8)
    batch = encode(tokenizer, texts)
    torch.testing.assert_close(smaller(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-5)


def test_frequent_tokens_lose_least(model: nn.Module) -> None:
    frequent = torch.arange(5, 12)
    weight = table(model).weight

    def lost(rows: list[list[int]]) -> torch.Tensor:
        return (factorization.vectors(factorization.factorize(model, 8, rows=rows)) - weight).norm(dim=1)

    alike, weighted = lost([]), lost([frequent.tolist()] * 500)
    assert weighted[frequent].max() < 0.1 * alike[frequent].min()
    assert weighted.square().sum() > alike.square().sum()
    best = torch.linalg.svdvals(weight.detach())[8:].square().sum()
    torch.testing.assert_close(alike.square().sum(), best, rtol=1e-4, atol=1e-6)


def test_a_table_of_more_rows_than_there_are_tokens_is_cut_alike(model: nn.Module, tokenizer: Any) -> None:
    model.resize_token_embeddings(len(tokenizer) + 40)  # type: ignore[operator]
    smaller = factorization.factorize(model, 16, rows=tokenizer(["a great film"])["input_ids"])
    assert factorization.vectors(smaller).shape == (len(tokenizer) + 40, 32)


def test_a_rank_that_saves_nothing_is_refused(model: nn.Module) -> None:
    with pytest.raises(FeatherweightError, match="embedding_rank 32 must be below the hidden size 32; 0 leaves"):
        factorization.factorize(model, 32, rows=[])


@pytest.mark.parametrize(("scheme", "bits"), [("int8-dynamic", 4), ("int8-static", 8), ("int4", 8), (None, 32)])
def test_it_survives_disk_a_smaller_vocabulary_and_export(
    tmp_path: Path, model: nn.Module, tokenizer: Any, texts: list[str], scheme: str | None, bits: int
) -> None:
    smaller = factorization.factorize(model, 16, rows=[])
    rows = tokenizer(texts)["input_ids"]
    smaller, cut = kept_tokens.keep_tokens(smaller, tokenizer, kept_tokens.choose_tokens(tokenizer, rows, keep=0.9))
    modeling.save(smaller, cut, tmp_path)
    loaded = modeling.load(tmp_path, "text-classification")
    batch = encode(cut, texts)
    assert torch.equal(loaded(**batch).logits, smaller(**batch).logits)
    described = Architecture.from_config(json.loads((tmp_path / "config.json").read_text(encoding="utf-8")))
    assert cost_model.num_parameters(described) == modeling.num_parameters(smaller)
    spec = plan(
        loaded,
        linears=scheme is not None,
        scheme=scheme or INT8_DYNAMIC,
        token_bits=bits,
        block_size=16,
    )
    if scheme == INT8_STATIC:
        how = LinearScheme(scheme, scale=0.05, zero_point=128)
        spec = Spec(linears=dict.fromkeys(spec.linears, how), embeddings=spec.embeddings, block_size=16)
    assert median_difference(loaded, cut, texts, tmp_path, spec) < 1e-3


@pytest.mark.parametrize("embeddings", ["sparse", "dense", "frozen"])
def test_the_table_is_trained_or_not_as_asked_and_the_projection_is(model: nn.Module, embeddings: str) -> None:
    smaller = factorization.factorize(model, 16, rows=[])
    trained, _, _ = train(smaller, lesson(model), 1, for_model={**FOR_MODEL, "embeddings": embeddings})
    before, after = (dict(one.named_parameters()) for one in (smaller, trained))
    name = families.of("bert").token_table(smaller)
    assert torch.equal(before[f"{name}.weight"], after[f"{name}.weight"]) == (embeddings == "frozen")
    projection = name.replace(".table", ".projection.weight")
    assert not torch.equal(before[projection], after[projection])

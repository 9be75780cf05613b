"""The forecast against what surgery and the quantization spec really give, to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.latency import forecast
from tasks.ml.models import factorization, modeling, quantization_spec
from tasks.ml.pruning import kept_tokens, surgery
from tasks.ml.pruning.importance import LayerImportance

PROBLEM = "text-classification"
PLANS = {
    "fp32": {"linears": False, "token_bits": 32, "block_size": 32},
    "int8": {"linears": True, "token_bits": 8, "block_size": 32},
    "int4 tables": {"linears": True, "token_bits": 4, "block_size": 32},
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize(
    ("layers", "keep_heads", "keep_ffn", "keep_vocabulary", "rank"),
    [(4, 1, 1, 1, 0), (2, 0.6, 0.3, 1, 0), (1, 0.01, 0.01, 0.8, 0), (2, 1, 1, 0.8, 16)],
)
def test_it_is_exact(
    bundle: Path, model: nn.Module, tokenizer: Any, plan: dict[str, Any],
    layers: int, keep_heads: float, keep_ffn: float, keep_vocabulary: float, rank: int,
) -> None:  # fmt: skip
    plan = {**plan, "block_size": rank or plan["block_size"]}
    student = surgery.keep_layers(model, surgery.spread(4, layers))
    if rank:
        student = factorization.factorize(student, rank, rows=[])
    scores = [LayerImportance(torch.rand(4), torch.rand(64)) for _ in range(layers)]
    counts = surgery.fraction(modeling.shapes(student), heads=keep_heads, ffn=keep_ffn)
    student = surgery.keep_counts(student, scores, counts)
    if keep_vocabulary < 1:
        tokens = kept_tokens.choose_tokens(tokenizer, [[5, 6, 7]], keep=keep_vocabulary)
        student, _ = kept_tokens.keep_tokens(student, tokenizer, tokens)
    expected = quantization_spec.num_bytes(student, quantization_spec.plan(student, **plan))
    assert expected == forecast.num_bytes(
        bundle, PROBLEM, layers=layers, keep_heads=keep_heads, keep_ffn=keep_ffn, keep_vocabulary=keep_vocabulary,
        embedding_rank=rank, plan=plan,
    )  # fmt: skip


def test_no_weights_are_read(bundle: Path) -> None:
    (bundle / modeling.WEIGHTS).unlink()
    arguments = {"keep_heads": 1, "keep_ffn": 1, "keep_vocabulary": 1, "embedding_rank": 0, "plan": PLANS["int8"]}
    assert forecast.num_bytes(bundle, PROBLEM, layers=2, **arguments) > 0
    with pytest.raises(FeatherweightError, match="the teacher has 4"):
        forecast.num_bytes(bundle, PROBLEM, layers=5, **arguments)

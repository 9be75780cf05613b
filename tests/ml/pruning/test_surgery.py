"""Removing nothing changes nothing, and a shrunk model equals the full one with the removed units gated to zero."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import families, modeling
from tasks.ml.pruning import kept_tokens, surgery
from tasks.ml.pruning.importance import LayerImportance
from tasks.ml.xray import cost_model
from tasks.ml.xray.architecture import Architecture


def importance(seed: int) -> list[LayerImportance]:
    generator = torch.Generator().manual_seed(seed)
    return [
        LayerImportance(heads=torch.rand(4, generator=generator), ffn=torch.rand(64, generator=generator))
        for _ in range(4)
    ]


def keep_top(model: nn.Module, scores: list[LayerImportance], *, heads: float, ffn: float) -> nn.Module:
    return surgery.keep_counts(model, scores, surgery.fraction(modeling.shapes(model), heads=heads, ffn=ffn))


def encode(tokenizer: Any, texts: list[str]) -> Any:
    return tokenizer(texts, return_tensors="pt", padding=True)


@pytest.mark.parametrize(
    ("total", "keep", "expected"), [(6, 3, [1, 3, 5]), (6, 6, [0, 1, 2, 3, 4, 5]), (12, 1, [11]), (4, 3, [0, 2, 3])]
)
def test_spread_is_even_and_ends_with_the_last(total: int, keep: int, expected: list[int]) -> None:
    assert surgery.spread(total, keep) == expected


def test_spread_refuses_more_layers_than_there_are() -> None:
    with pytest.raises(FeatherweightError, match=r"layers is 7, but the teacher has 6"):
        surgery.spread(6, 7)


def test_keeping_everything_changes_nothing(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    batch = encode(tokenizer, texts)
    expected = model(**batch).logits
    same = surgery.keep_layers(model, range(4))
    same = keep_top(same, importance(0), heads=1.0, ffn=1.0)
    same, tokens = kept_tokens.keep_tokens(same, tokenizer, range(len(tokenizer)))
    assert torch.equal(same(**encode(tokens, texts)).logits, expected)


def test_cut_model_equals_the_gated_full_model(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    scores = importance(1)
    smaller = keep_top(model, scores, heads=0.5, ffn=0.25)
    assert modeling.shapes(smaller) == [{"heads": 2, "ffn": 16}] * 4
    handles = []
    for layer, score in zip(families.BERT.layer_list(model), scores, strict=True):
        for name, kept, width in (("attention_output", score.heads.topk(2), 8), ("ffn_down", score.ffn.topk(16), 1)):
            gate = torch.zeros_like(score.heads if width == 8 else score.ffn)
            gate[kept.indices] = 1.0
            gate = gate.repeat_interleave(width)
            module = layer.get_submodule(getattr(families.BERT, name))
            handles.append(module.register_forward_pre_hook(lambda _, args, gate=gate: (args[0] * gate,)))
    batch = encode(tokenizer, texts)
    torch.testing.assert_close(smaller(**batch).logits, model(**batch).logits)


def gate(model: nn.Module, layer: int, closing: str) -> None:
    """Silences what a block adds to its bias."""
    module = families.BERT.layer_list(model)[layer].get_submodule(closing)
    module.register_forward_pre_hook(lambda _, args: (args[0] * 0.0,))


def test_blocks_cut_out_whole_equal_the_gated_model_and_survive_the_disk(
    tmp_path: Any, model: nn.Module, tokenizer: Any, texts: list[str]
) -> None:
    full = {"heads": 4, "ffn": 64}
    counts = [full, {"heads": 0, "ffn": 64}, {"heads": 4, "ffn": 0}, {"heads": 0, "ffn": 0}]
    smaller = surgery.keep_counts(model, importance(3), counts)
    assert modeling.shapes(smaller) == counts
    for layer, closing in ((1, "attention.output.dense"), (2, "output.dense"), (3, "attention.output.dense"),
                           (3, "output.dense")):  # fmt: skip
        gate(model, layer, closing)
    batch = encode(tokenizer, texts)
    torch.testing.assert_close(smaller(**batch).logits, model(**batch).logits)
    modeling.save(smaller, tokenizer, tmp_path)
    assert torch.equal(modeling.load(tmp_path, "text-classification")(**batch).logits, smaller(**batch).logits)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    described = Architecture.from_config(config)
    assert cost_model.num_parameters(described) == modeling.num_parameters(smaller)
    # What is gone can be cut again, and stays gone.
    scores = [LayerImportance(heads=x.heads[: c["heads"]], ffn=x.ffn[: c["ffn"]]) for x, c in
              zip(importance(4), counts, strict=True)]  # fmt: skip
    again = keep_top(smaller, scores, heads=0.5, ffn=0.5)
    assert modeling.shapes(again)[1:] == [{"heads": 0, "ffn": 32}, {"heads": 2, "ffn": 0}, {"heads": 0, "ffn": 0}]


def test_the_argument_is_left_alone(model: nn.Module, tokenizer: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    surgery.keep_layers(model, [0])
    keep_top(model, importance(0), heads=0.25, ffn=0.1)
    kept_tokens.keep_tokens(model, tokenizer, range(40))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_pruned_model_survives_the_disk(tmp_path: Any, model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    smaller = keep_top(surgery.keep_layers(model, [1, 3]), importance(2)[:2], heads=0.75, ffn=0.3)
    modeling.save(smaller, tokenizer, tmp_path)
    batch = encode(tokenizer, texts)
    assert torch.equal(modeling.load(tmp_path, "text-classification")(**batch).logits, smaller(**batch).logits)

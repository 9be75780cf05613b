from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tasks.ml import families, importance


def batches(tokenizer: Any, texts: list[str], size: int) -> list[dict[str, torch.Tensor]]:
    result = []
    for start in range(0, len(texts), size):
        part = tokenizer(texts[start : start + size], return_tensors="pt", padding="max_length", max_length=20)
        targets = torch.tensor([index % 2 for index in range(start, min(start + size, len(texts)))])
        result.append({**part, "targets": targets})
    return result


def loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(logits, batch["targets"])


def test_shapes_and_independence_of_batch_size(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    one = importance.taylor(model, batches(tokenizer, texts, 1), loss)
    four = importance.taylor(model, batches(tokenizer, texts, 4), loss)
    assert [(len(x.heads), len(x.ffn)) for x in one] == [(4, 64)] * 4
    for a, b in zip(one, four, strict=True):
        torch.testing.assert_close(a.heads, b.heads, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(a.ffn, b.ffn, rtol=1e-4, atol=1e-7)


def test_a_unit_without_effect_has_no_importance(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    layer = families.BERT.layer_list(model)[1]
    with torch.no_grad():
        layer.get_submodule("output.dense").weight[:, 5] = 0.0
        layer.get_submodule("attention.output.dense").weight[:, 8:16] = 0.0
    scores = importance.taylor(model, batches(tokenizer, texts, 2), loss)[1]
    assert scores.ffn[5] == 0.0
    assert scores.heads[1] == 0.0
    assert (scores.heads[[0, 2, 3]] > 0).all()


def test_it_approximates_the_change_of_the_loss(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    """A gate moved by a small step changes the loss by step · ∂L/∂g."""
    (batch,) = batches(tokenizer, texts[:1], 1)
    score = importance.taylor(model, [batch], loss)[0].heads[2]
    output = families.BERT.layer_list(model)[0].get_submodule("attention.output.dense")
    step = 1e-2

    def shrink(_: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        x = args[0].clone()
        x[..., 16:24] *= 1 - step
        return (x,)

    with torch.no_grad():
        before = loss(model(batch["input_ids"], batch["attention_mask"]).logits, batch)
        output.register_forward_pre_hook(shrink)
        after = loss(model(batch["input_ids"], batch["attention_mask"]).logits, batch)
    torch.testing.assert_close((after - before).abs() / step, score, rtol=0.05, atol=1e-4)


def test_the_model_is_left_without_hooks(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    importance.taylor(model, batches(tokenizer, texts, 2), loss)
    assert not any(module._forward_pre_hooks for module in model.modules())

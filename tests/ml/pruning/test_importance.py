from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tasks.ml.models import families, modeling
from tasks.ml.pruning import importance


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


def test_activation_is_the_mean_square_that_a_unit_adds_to_its_block(
    model: nn.Module, tokenizer: Any, texts: list[str]
) -> None:
    (batch,) = batches(tokenizer, texts, 4)
    layer = families.BERT.layer_list(model)[2]
    inputs: dict[str, torch.Tensor] = {}
    for name in ("attention.output.dense", "output.dense"):
        layer.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: inputs.update({name: x[0]}))
    found = importance.activation(model, batches(tokenizer, texts, 3))[2]
    model(batch["input_ids"], batch["attention_mask"])
    real = batch["attention_mask"].bool()
    channel = inputs["output.dense"][real][:, 5:6] * layer.get_submodule("output.dense").weight[:, 5]
    torch.testing.assert_close(found.ffn[5], channel.square().sum(dim=1).mean())
    parts = (
        inputs["attention.output.dense"][real][:, 8:16, None]
        * layer.get_submodule("attention.output.dense").weight[:, 8:16].T
    )
    torch.testing.assert_close(found.heads[1], parts.square().sum(dim=(1, 2)).mean())


def test_activation_is_blind_to_padding(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    short = tokenizer(texts, return_tensors="pt", padding=True)
    for a, b in zip(
        importance.activation(model, [short]),
        importance.activation(model, batches(tokenizer, texts, 4)),
        strict=True,
    ):
        torch.testing.assert_close(a.heads, b.heads)
        torch.testing.assert_close(a.ffn, b.ffn)


def test_blocks_that_are_gone_have_no_scores(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    for index, size in ((1, {"heads": 0, "ffn": 64}), (2, {"heads": 4, "ffn": 0})):
        modeling.resize(families.BERT, families.BERT.layer_list(model)[index], **size)
    expected = [(4, 64), (0, 64), (4, 0), (4, 64)]
    for scores in (
        importance.taylor(model, batches(tokenizer, texts, 2), loss),
        importance.activation(model, batches(tokenizer, texts, 2)),
    ):
        assert [(len(x.heads), len(x.ffn)) for x in scores] == expected
        assert all((x.heads > 0).all() and (x.ffn > 0).all() for x in scores)


def test_the_model_is_left_without_hooks(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    importance.taylor(model, batches(tokenizer, texts, 2), loss)
    importance.activation(model, batches(tokenizer, texts, 2))
    assert not any(module._forward_pre_hooks for module in model.modules())

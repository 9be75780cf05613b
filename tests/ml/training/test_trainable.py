from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tasks.ml.models import first_token
from tasks.ml.training import trainable

IDS = torch.tensor([[2, 5, 6, 7, 3, 0], [2, 8, 9, 3, 0, 0]])
INPUTS = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}
PLAIN: dict[str, Any] = {
    "optimizer": "adamw", "precision": "fp32", "embeddings": "dense", "activation_checkpointing": False, "lora_rank": 0
}  # fmt: skip


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    nn.functional.cross_entropy(model(**INPUTS).logits, torch.tensor([0, 1])).backward()
    return {
        n: p.grad.to_dense() if p.grad.is_sparse else p.grad for n, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("change", [{"activation_checkpointing": True}, {"embeddings": "sparse"}])
def test_saving_memory_changes_no_gradient(model: nn.Module, change: dict[str, Any]) -> None:
    model.train()
    expected = gradients(model)
    with trainable.prepared(model, **PLAIN | change):
        found = gradients(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_narrowing_the_last_layer_changes_no_gradient_and_no_name(model: nn.Module) -> None:
    expected, names = gradients(model), list(model.state_dict())
    calls: list[tuple[int, ...]] = []
    watch = model.bert.encoder.layer[-1].intermediate.register_forward_hook(lambda _, a, __: calls.append(a[0].shape))
    with first_token.narrowed(model):
        found = gradients(model)
        assert list(model.state_dict()) == names
    gradients(model)
    watch.remove()
    assert calls == [(2, 1, 32), (2, 6, 32)]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_activation_checkpointing_computes_layers_twice(model: nn.Module) -> None:
    calls: list[int] = []
    model.bert.encoder.layer[0].intermediate.register_forward_hook(lambda *_: calls.append(1))
    model.train()
    with trainable.prepared(model, **PLAIN | {"activation_checkpointing": True}):
        gradients(model)
    assert len(calls) == 2
    gradients(model)
    assert len(calls) == 3


def test_sparse_gradients_hold_touched_rows_only_and_end_with_the_training(model: nn.Module) -> None:
    table = model.bert.embeddings.word_embeddings
    with trainable.prepared(model, **PLAIN | {"embeddings": "sparse"}):
        model(**INPUTS).logits.sum().backward()
        assert table.weight.grad.is_sparse
        assert set(table.weight.grad.coalesce().indices()[0].tolist()) <= set(IDS.flatten().tolist())
    assert not table.sparse
    with trainable.prepared(model, **PLAIN | {"embeddings": "sparse", "optimizer": "lion"}):
        assert not table.sparse


def test_frozen_embeddings_are_trainable_again_afterwards(model: nn.Module) -> None:
    with trainable.prepared(model, **PLAIN | {"embeddings": "frozen"}):
        assert "bert.embeddings.word_embeddings.weight" not in gradients(model)
    assert "bert.embeddings.word_embeddings.weight" in gradients(model)


def test_lora_trains_few_parameters_and_merges_into_a_plain_model(model: nn.Module) -> None:
    names, before = list(model.state_dict()), {n: p.clone() for n, p in model.named_parameters()}
    plain = model(**INPUTS).logits
    with trainable.prepared(model, **PLAIN | {"lora_rank": 2}):
        torch.testing.assert_close(model(**INPUTS).logits, plain)  # B starts at zero
        trained = [p for p in model.parameters() if p.requires_grad]
        assert sum(p.numel() for p in trained) < 0.2 * sum(p.numel() for p in before.values())
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        for _ in range(5):
            gradients(model)
            optimizer.step()
        expected = model(**INPUTS).logits
    assert list(model.state_dict()) == names
    assert all(type(m) is not nn.Module and "lora" not in type(m).__module__ for m in model.modules())
    torch.testing.assert_close(model(**INPUTS).logits, expected)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert "classifier.weight" in changed
    assert "bert.encoder.layer.0.attention.self.query.weight" in changed
    assert "bert.embeddings.word_embeddings.weight" not in changed
    assert all(p.requires_grad for p in model.parameters())

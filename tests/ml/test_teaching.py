from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks.ml import learning, surgery, teaching
from tasks.ml.datasets import Split
from tasks.ml.problems import text_classification

EVERYTHING = teaching.Weights(logits=1.0, hidden=1.0, attention=1.0, labels=0.0)


def make_loss(student: nn.Module, teacher: nn.Module, rows: list[list[int]], **changes: Any) -> Any:
    options: dict[str, Any] = {
        "layer_map": range(4),
        "weights": EVERYTHING,
        "temperature": 2.0,
        "pad_id": 0,
        "supervised": text_classification.loss,
    }
    targets = torch.full((len(rows),), text_classification.NO_TARGET)
    return teaching.step_loss(student, teacher, rows, targets, **options | changes)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(
    model: nn.Module, tokenizer: Any, texts: list[str]
) -> None:
    rows = tokenizer(texts)["input_ids"]
    loss, parts = make_loss(copy.deepcopy(model), model, rows)([0, 1, 2, 3])
    assert parts.keys() == {"logit_loss", "hidden_loss", "attention_loss"}
    # The teacher's answers are kept in bf16: 8 bits of mantissa.
    assert loss.item() == pytest.approx(0.0, abs=2e-4)


def test_each_part_sees_its_difference(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    rows = tokenizer(texts)["input_ids"]
    student = surgery.keep_layers(model, [1, 3])
    loss, parts = make_loss(student, model, rows, layer_map=[1, 3])([0, 1, 2, 3])
    assert all(value > 1e-3 for value in parts.values())
    assert loss.item() == pytest.approx(sum(parts.values()).item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None for name, p in student.named_parameters() if "layer" in name)
    assert all(p.grad is None for p in model.parameters())


def test_memory_gives_the_same_answers(monkeypatch: Any, model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    rows = tokenizer(texts)["input_ids"]
    student = surgery.keep_layers(model, [1, 3])
    remembered = make_loss(student, model, rows, layer_map=[1, 3])
    first, second = remembered([0, 1]), remembered([1, 0, 3])
    monkeypatch.setattr(teaching, "LARGEST_CACHE", 0)
    asked_anew = make_loss(student, model, rows, layer_map=[1, 3])
    assert first[0].item() == pytest.approx(asked_anew([0, 1])[0].item(), rel=1e-2)
    assert second[0].item() == pytest.approx(asked_anew([1, 0, 3])[0].item(), rel=1e-2)


def test_labels_count_only_where_there_are_any(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    rows = tokenizer(texts)["input_ids"]
    targets = torch.tensor([1, text_classification.NO_TARGET, 0, text_classification.NO_TARGET])
    weights = teaching.Weights(logits=0.0, hidden=0.0, labels=1.0)
    loss = teaching.step_loss(
        model, model, rows, targets, layer_map=range(4), weights=weights, temperature=1.0, pad_id=0,
        supervised=text_classification.loss,
    )  # fmt: skip
    assert loss([1, 3])[1]["label_loss"] == 0.0
    assert loss([0, 1])[1]["label_loss"] == pytest.approx(loss([0])[1]["label_loss"].item(), rel=1e-4)


def test_quality_counts_rows_in_order(model: nn.Module, tokenizer: Any, texts: list[str]) -> None:
    rows = tokenizer(texts)["input_ids"]
    with torch.no_grad():
        logits = np.stack([model(torch.tensor([row])).logits[0].numpy() for row in rows])
    targets = logits.argmax(axis=1)
    targets[2] = 1 - targets[2]
    measured = learning.quality(
        model,
        text_classification,
        Split(texts, rows, targets),
        pad_id=0,
        reference=logits,  # type: ignore[arg-type]
    )
    assert measured["accuracy"] == 0.75
    assert measured["agreement"] == 1.0
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets)).item()
    assert measured["loss"] == pytest.approx(expected, rel=1e-4)

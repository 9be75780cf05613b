"""However a batch is divided, its gradient is that of the whole: every loss, ragged rows, few of them labelled."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks.ml.data.datasets import Split
from tasks.ml.distillation import teaching
from tasks.ml.problems import text_classification
from tasks.ml.pruning import surgery
from tasks.ml.quality import learning
from tasks.ml.training import optimizers, precision, trainable
from tasks.ml.training.updates import StepLoss, Update

ROWS = 32
NOTHING = {"logits": 0.0, "hidden": 0.0, "attention": 0.0, "maps": 0.0, "labels": 0.0}
ALL = dict.fromkeys(NOTHING, 1.0)


def texts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [[2, *rng.integers(5, 40, rng.integers(1, 20)).tolist(), 3] for _ in range(ROWS)]


def targets() -> np.ndarray:
    """Nine of the rows have a label, none of them among the first eight."""
    labels = np.full(ROWS, text_classification.NO_TARGET)
    labels[[9, 10, 13, 17, 20, 21, 26, 30, 31]] = [0, 1, 0, 0, 1, 1, 0, 1, 0]
    return labels


def tutored(student: nn.Module, teacher: nn.Module, weights: dict[str, float]) -> StepLoss:
    return teaching.Tutored(
        student, teacher, texts(), torch.from_numpy(targets()), layer_map=[1, 3], weights=teaching.Weights(**weights),
        temperature=2.0, pad_id=0, problem=text_classification,
    )  # fmt: skip


def gradient(model: nn.Module, loss: StepLoss, micro_batch: int) -> tuple[torch.Tensor, float]:
    algorithm = optimizers.build(model, "sgd", learning_rate=1.0, weight_decay=0.0)
    fp32 = precision.choose("fp32", torch.device("cpu"))
    update = Update(model, loss, algorithm, fp32, clip_norm=1.0, micro_batch=micro_batch)
    algorithm.zero_grad()
    value, parts = update._accumulate(list(range(ROWS)))
    assert sum(parts.values(), torch.zeros(())) == pytest.approx(value.item() if parts else 0.0, rel=1e-5)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), value.item()


def assert_divided_alike(model: nn.Module, loss: StepLoss, divisions: list[int]) -> None:
    whole, value = gradient(model, loss, 0)
    assert whole.norm() > 1e-3
    for micro_batch in divisions:
        parts, sum_of_parts = gradient(model, loss, micro_batch)
        assert (parts - whole).norm() <= 1e-5 * whole.norm(), micro_batch
        assert sum_of_parts == pytest.approx(value, rel=1e-5), micro_batch


@pytest.mark.parametrize("name", [*NOTHING, "all"])
def test_of_a_teacher(model: nn.Module, name: str) -> None:
    weights = ALL if name == "all" else NOTHING | {name: 1.0}
    student = surgery.keep_layers(model, [1, 3]).train()
    with torch.no_grad():
        student.classifier.weight.mul_(-2)
    assert_divided_alike(student, tutored(student, model, weights), [8, 7, 1])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_of_labels(model: nn.Module, label_smoothing: float) -> None:
    split = Split([""] * ROWS, texts(), targets())
    problem: Any = text_classification
    loss = learning.Supervised(model.train(), problem, split, pad_id=0, label_smoothing=label_smoothing)
    assert_divided_alike(model, loss, [8, 7, 1])


@pytest.mark.parametrize("again", [False, True])
def test_of_what_a_memory_limit_chooses(model: nn.Module, again: bool) -> None:
    """Fewer rows at once, and activations that are computed again."""
    student = surgery.keep_layers(model, [1, 3]).train()
    whole, _ = gradient(student, tutored(student, model, ALL), 0)
    cheaper = copy.deepcopy(student)
    with trainable.checkpointed(cheaper) if again else nullcontext():
        parts, _ = gradient(cheaper, tutored(cheaper, model, ALL), 5)
    assert (parts - whole).norm() <= 1e-5 * whole.norm()

"""A small lesson, and how it is learned in one process or in several: what tests of training together share."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks.ml.data.datasets import Split
from tasks.ml.distillation import teaching
from tasks.ml.jobs import elastic
from tasks.ml.jobs.lessons import Lesson, Tutor
from tasks.ml.problems import text_classification
from tasks.ml.quality import evaluation
from tasks.ml.training import trainer

FOR_MODEL = {"embeddings": "sparse", "activation_checkpointing": False, "lora_rank": 0}
FOR_TRAINER: dict[str, Any] = {
    "epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "schedule": "linear", "warmup": 0.1, "weight_decay": 0.01,
    "clip_norm": 1.0, "precision": "fp32", "seed": 0, "optimizer": "adamw",
}  # fmt: skip


class Recorder:
    def __init__(self) -> None:
        self.first_step = -1
        self.losses: dict[int, float] = {}
        self.evaluations: list[int] = []

    def start(self, *, total_steps: int, first_step: int) -> None:
        self.first_step = first_step

    def step(self, step: int, point: Mapping[str, float]) -> None:
        self.losses[step] = point["loss"]

    def evaluation(self, step: int, point: Mapping[str, float]) -> None:
        self.evaluations.append(step)


class Interrupted(Recorder):
    """Stops a run of 12 steps and two evaluations after the first of these, at step 6, was written down."""

    def step(self, step: int, point: Mapping[str, float]) -> None:
        if step == 8:
            raise KeyboardInterrupt


EVERYTHING = teaching.Weights(hidden=1.0, attention=0.5, labels=0.5, maps=0.5)


def lesson(
    model: nn.Module, *, tutored: bool = False, weights: teaching.Weights = EVERYTHING, rows: int = 41
) -> Lesson:
    """Rows of random tokens; 41 at 8 a batch end in a batch of one, which is fewer than there are processes.

    With a tutor two rows of three have no label.
    """
    rng = np.random.default_rng(0)
    ids = [[2, *rng.integers(5, 40, rng.integers(1, 9)).tolist(), 3] for _ in range(rows)]
    targets = np.array([row[1] % 2 for row in ids])
    selection = Split([""] * 10, ids[:10], targets[:10])
    tutor, reference = None, None
    if tutored:
        teacher = copy.deepcopy(model)
        with torch.no_grad():
            teacher.classifier.weight.mul_(-3)
        tutor = Tutor(teacher, [0, 1, 2, 3], weights, 2.0)
        reference = evaluation.logits(teacher, selection.input_ids, pad_id=0)
        targets = np.where(np.arange(rows) % 3 == 0, targets, text_classification.NO_TARGET)
    return Lesson("text-classification", 0, ids, targets, selection, tutor=tutor, reference=reference)


def train(
    model: nn.Module, what: Lesson, processes: int, checkpoint: Path | None = None, **changes: Any
) -> tuple[nn.Module, Recorder, trainer.History]:
    student, recorder = copy.deepcopy(model), Recorder()
    options: dict[str, Any] = {"for_model": FOR_MODEL, "observer": recorder, "checkpoint": checkpoint}
    options |= FOR_TRAINER | changes
    if processes == 1:
        trainer.seed_everything(0)
        return student, recorder, what.learn(student, **options)
    return student, recorder, elastic.learn(student, what, num_processes=processes, **options)


def interrupt(model: nn.Module, what: Lesson, processes: int, checkpoint: Path, **changes: Any) -> None:
    """Trains a copy as ``train`` does until it is interrupted; leaves the checkpoint of step 6."""
    with pytest.raises(KeyboardInterrupt):
        train(model, what, processes, checkpoint, observer=Interrupted(), **changes)


def assert_same_weights(found: nn.Module, expected: nn.Module, start: nn.Module) -> None:
    """To 1e-3 of their change since the start.

    But for the biases of keys: softmax takes no notice of them, their gradient is rounding, and Adam makes it a step.
    """
    for (name, a), b, c in zip(expected.named_parameters(), found.parameters(), start.parameters(), strict=True):
        if not name.endswith("key.bias"):
            assert (a - b).norm() <= 1e-3 * (a - c).norm() + 1e-6, name

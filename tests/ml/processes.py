"""A small lesson, and how it is learned in one process or in several: what tests of training together share."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks.ml import elastic, evaluation, teaching, trainer
from tasks.ml.datasets import Split
from tasks.ml.lessons import Lesson, Tutor

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


def lesson(model: nn.Module, *, tutored: bool = False, rows: int = 41) -> Lesson:
    """Rows of random tokens; 41 at 8 a batch end in a batch of one, which is fewer than there are processes."""
    rng = np.random.default_rng(0)
    ids = [[2, *rng.integers(5, 40, rng.integers(1, 9)).tolist(), 3] for _ in range(rows)]
    targets = np.array([row[1] % 2 for row in ids])
    selection = Split([""] * 10, ids[:10], targets[:10])
    tutor, reference = None, None
    if tutored:
        teacher = copy.deepcopy(model)
        with torch.no_grad():
            teacher.classifier.weight.mul_(-3)
        tutor = Tutor(teacher, [0, 1, 2, 3], teaching.Weights(attention=0.5), 2.0)
        reference = evaluation.logits(teacher, selection.input_ids, pad_id=0)
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

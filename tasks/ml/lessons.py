"""A lesson: all that a model needs to be trained, as one value that can be written down for other processes to read.

B = rows of a batch, N = rows, S = tokens, C = classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tasks.ml import first_token, learning, modeling, problems, teaching, trainable, trainer
from tasks.ml.datasets import Split
from tasks.ml.updates import StepLoss


@dataclass(frozen=True)
class Tutor:
    """Who teaches, and what of its answers counts."""

    teacher: nn.Module
    layer_map: list[int]
    """Teacher layer that each student layer learns."""
    weights: teaching.Weights
    temperature: float


@dataclass(frozen=True)
class Lesson:
    """Rows to learn from, with labels or with a tutor's answers, and labelled rows to be measured on."""

    problem: str
    pad_id: int
    input_ids: list[list[int]]
    targets: np.ndarray
    """(N,) int64; the problem's ``NO_TARGET`` where there is no label."""
    selection: Split
    label_smoothing: float = 0.0
    tutor: Tutor | None = None
    reference: np.ndarray | None = None
    """The teacher's logits on the selection rows (N, C)."""

    def step_loss(self, model: nn.Module) -> StepLoss:
        """Makes the loss of a batch of rows."""
        problem = problems.get(self.problem)
        if self.tutor is None:
            rows = Split([""] * len(self.input_ids), self.input_ids, self.targets)
            return learning.supervised(model, problem, rows, pad_id=self.pad_id, label_smoothing=self.label_smoothing)
        return teaching.step_loss(
            model,
            self.tutor.teacher,
            self.input_ids,
            torch.as_tensor(self.targets),
            layer_map=self.tutor.layer_map,
            weights=self.tutor.weights,
            temperature=self.tutor.temperature,
            pad_id=self.pad_id,
            supervised=problem.loss,
        )

    def quality(self, model: nn.Module) -> dict[str, float]:
        """Measures a model on the selection rows, as ``learning.quality`` does."""
        problem = problems.get(self.problem)
        return learning.quality(model, problem, self.selection, pad_id=self.pad_id, reference=self.reference)

    def learn(
        self, model: nn.Module, *, for_model: Mapping[str, Any], observer: trainer.Observer, **for_trainer: Any
    ) -> trainer.History:
        """Trains a model in place.

        Args:
            for_model: keyword arguments of ``trainable.prepared``.
            for_trainer: keyword arguments of ``trainer.fit``.
        """
        with ExitStack() as stack:
            shared = {name: for_trainer[name] for name in ("optimizer", "precision")}
            stack.enter_context(trainable.prepared(model, **shared, **for_model))
            # A tutor's last hidden states are compared at every token.
            if self.tutor is None and problems.get(self.problem).FIRST_TOKEN_ONLY:
                stack.enter_context(first_token.narrowed(model))
            return trainer.fit(
                model,
                self.step_loss(model),
                lengths=[len(row) for row in self.input_ids],
                evaluate=lambda: self.quality(model),
                observer=observer,
                **for_trainer,
            )

    def write(self, directory: Path) -> None:
        """Writes the lesson, teacher included, into an existing directory: safetensors and JSON."""
        tensors = {
            "targets": torch.as_tensor(self.targets),
            "selection_targets": torch.as_tensor(self.selection.targets),
        }
        for name, rows in (("input_ids", self.input_ids), ("selection_ids", self.selection.input_ids)):
            tensors[name] = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
            tensors[f"{name}_lengths"] = torch.tensor([len(row) for row in rows])
        if self.reference is not None:
            tensors["reference"] = torch.as_tensor(self.reference)
        about: dict[str, Any] = {
            "problem": self.problem, "pad_id": self.pad_id, "label_smoothing": self.label_smoothing
        }  # fmt: skip
        if self.tutor is not None:
            about["tutor"] = {
                "layer_map": self.tutor.layer_map,
                "weights": asdict(self.tutor.weights),
                "temperature": self.tutor.temperature,
            }
            (directory / "teacher").mkdir()
            modeling.save_model(self.tutor.teacher, directory / "teacher")
        save_file(tensors, directory / "lesson.safetensors")
        (directory / "lesson.json").write_text(json.dumps(about), encoding="utf-8")

    @classmethod
    def read(cls, directory: Path, device: torch.device) -> Lesson:
        """Reads what ``write`` wrote; the teacher goes to the device."""
        about = json.loads((directory / "lesson.json").read_text(encoding="utf-8"))
        tensors = load_file(directory / "lesson.safetensors")

        def rows(name: str) -> list[list[int]]:
            parts = tensors[name].split(tensors[f"{name}_lengths"].tolist())
            return [part.tolist() for part in parts]

        selection_ids = rows("selection_ids")
        tutor = None
        if "tutor" in about:
            said = about.pop("tutor")
            teacher = modeling.load(directory / "teacher", about["problem"]).to(device)
            tutor = Tutor(teacher, said["layer_map"], teaching.Weights(**said["weights"]), said["temperature"])
        return cls(
            **about,
            input_ids=rows("input_ids"),
            targets=tensors["targets"].numpy(),
            selection=Split([""] * len(selection_ids), selection_ids, tensors["selection_targets"].numpy()),
            tutor=tutor,
            reference=tensors["reference"].numpy() if "reference" in tensors else None,
        )

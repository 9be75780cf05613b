"""Learning from labels, and measuring quality on a split. B = rows, C = classes, N = rows of the split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from tasks.ml.data import batching
from tasks.ml.data.datasets import Split
from tasks.ml.problem import Problem
from tasks.ml.quality import evaluation


class Supervised:
    """The mean supervised loss of a split's rows that have a label, a ``StepLoss``."""

    def __init__(
        self,
        model: nn.Module,
        problem: Problem,
        split: Split,
        *,
        pad_id: int,
        label_smoothing: float = 0.0,
        padding: batching.Padding = batching.Padding(),
    ) -> None:
        self.model, self.problem, self.input_ids = model, problem, split.input_ids
        self.targets = torch.as_tensor(split.targets)
        self.pad_id, self.label_smoothing, self.padding = pad_id, label_smoothing, padding
        self.device = next(model.parameters()).device

    def amounts(self, parts: Sequence[list[int]]) -> torch.Tensor:
        """What the mean loss is over, such as rows that have a label, (1,)."""
        return torch.tensor([sum(map(self._amount, parts))], dtype=torch.float64)

    def _amount(self, rows: list[int]) -> int:
        return self.problem.amount([self.input_ids[row] for row in rows], self.targets[rows])

    def __call__(self, rows: list[int], whole: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        texts = [self.input_ids[row] for row in rows]
        ids, mask = batching.collate(texts, pad_id=self.pad_id, device=self.device, padding=self.padding)
        logits = self.model(input_ids=ids, attention_mask=mask).logits
        targets, counted = batching.send(self.targets[rows], self.device), batching.counted(texts, mask)
        batch = {"input_ids": ids, "attention_mask": mask, "counted": counted, "targets": targets}
        mean = self.problem.loss(logits, batch, label_smoothing=self.label_smoothing)
        return mean * (self._amount(rows) / max(whole.item(), 1)), {}


def batches(split: Split, batch_size: int, *, pad_id: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yields ``input_ids``, ``attention_mask`` and ``counted`` (B, S) and ``targets`` (B,), shortest rows first."""
    for rows in batching.by_length([len(row) for row in split.input_ids], batch_size):
        texts, targets = [split.input_ids[row] for row in rows], torch.as_tensor(split.targets[rows])
        ids, mask = batching.collate(texts, pad_id=pad_id)
        counted = batching.counted(texts, mask)
        yield {"input_ids": ids, "attention_mask": mask, "counted": counted, "targets": targets}


def quality(
    model: nn.Module,
    problem: Problem,
    split: Split,
    *,
    pad_id: int,
    reference: np.ndarray | None = None,
    others: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """Has a model answer a split, and measures the answers as ``measure`` does."""
    logits = evaluation.logits(model, split.input_ids, pad_id=pad_id, problem=problem)
    return measure(problem, logits, split.targets, reference=reference, others=others)


def measure(
    problem: Problem,
    logits: np.ndarray,
    targets: np.ndarray,
    *,
    reference: np.ndarray | None = None,
    others: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """Measures ``quality``, the mean score, its ``standard_error``, ``loss`` a row; ``agreement`` with a reference,
    where that can be told, and the standard error of what is lost against it, ``drop_error``.

    Args:
        logits: what was kept of them (N, …), and ``targets`` (N,) of the same rows.
        others: those of other models by name; gives ``agreement_with_NAME``.
    """
    scores = problem.scores(logits, targets)
    measured = {
        "quality": float(scores.mean()),
        "standard_error": float(scores.std() / len(scores) ** 0.5),
        "loss": problem.lost(logits, targets),
    }
    if reference is not None:
        measured |= _agreement("agreement", problem, logits, reference)
        lost = problem.scores(reference, targets) - scores
        measured["drop_error"] = float(lost.std() / len(lost) ** 0.5)
    for name, theirs in (others or {}).items():
        measured |= _agreement(f"agreement_with_{name}", problem, logits, theirs)
    return measured


def _agreement(name: str, problem: Problem, logits: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    share, _ = agreement(problem, logits, reference)
    return {} if share is None else {name: share}


class Agreement(NamedTuple):
    """What two models have in common."""

    share: float | None
    """Fraction of their answers, of the rows that it can be told of; ``None`` where there is none."""
    rows: int
    """How many rows these are: of models with different vocabularies those that both read alike."""


def agreement(problem: Problem, logits: np.ndarray, reference: np.ndarray) -> Agreement:
    """How far two models agree, by what was kept of the logits of each (N, …)."""
    alike = problem.same(logits, reference).astype(np.float64)
    told = alike[~np.isnan(alike)]
    return Agreement(float(told.mean()) if len(told) else None, len(told))

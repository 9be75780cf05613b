"""What is asked of a problem, and who answers: a module of ``problems``, found by the recipe's name for it.

No stage and no other room asks which problem it has.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from tasks.contracts.base import FeatherweightError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.contracts.values import Check, ClassRecall
    from tasks.ml.data.column_kinds import ColumnKind
    from tasks.ml.data.datasets import Split
    from tasks.ml.data.tables import Table
    from tasks.ml.data.targets import Targets

PROBLEMS = {
    "text-classification": "tasks.ml.problems.text_classification",
    "text-regression": "tasks.ml.problems.text_regression",
    "causal-lm": "tasks.ml.problems.causal_lm",
}


@dataclass(frozen=True)
class Answer:
    """What a model's outputs mean to those whom it is served to.

    Attributes:
        kind: how logits become an answer, one of ``tasks.serving.predictor.ANSWERS``.
        labels: what the outputs are called, in their order.
        purpose: what the model tells of a text, in words that come before the labels.
        about: what ``kind`` needs beside the labels, in JSON: of a score, ``mean`` and ``spread``; of a completion,
            ``ends``, ``new_tokens`` and ``context`` (``tasks.serving.completions``).
    """

    kind: str
    labels: Sequence[str]
    purpose: str
    about: Mapping[str, Any] = field(default_factory=dict)


class Problem(Protocol):
    """The functions a problem module has. B = rows, S = tokens, C = classes."""

    def objections(self, training: Mapping[str, Any]) -> Iterable[str]:
        """What of the settings of the teacher's training means nothing here, and what would be right."""
        ...

    def targets(self, tables: Mapping[str, Table]) -> Targets:
        """What is learned of the labels of a source's splits; raises ``FeatherweightError`` where it cannot be."""
        ...

    def load_base(self, directory: str | Path, labels: Sequence[str], *, dropout: float = 0.1) -> nn.Module:
        """Loads a pretrained model with a head for these labels."""
        ...

    def build(self, config: Any) -> nn.Module:
        """Builds the model of a config, with random weights."""
        ...

    def amount(self, rows: Sequence[Sequence[int]], targets: np.ndarray | torch.Tensor) -> int:
        """What the mean of ``loss`` over rows of tokens is a mean over: rows with a target, or tokens that count."""
        ...

    def loss(
        self, logits: torch.Tensor, batch: Mapping[str, torch.Tensor], *, label_smoothing: float = 0.0
    ) -> torch.Tensor:
        """Mean supervised loss in nats; rows without a target are ignored.

        Args:
            batch: ``input_ids`` and ``attention_mask`` (B, S) that logits are of, ``counted`` (B, S), 1 on tokens that
                count where answers are per token, and ``targets`` (B,). Without ``counted`` all tokens do.
        """
        ...

    def said(self, logits: torch.Tensor) -> torch.Tensor:
        """What a student learns of its teacher's logits: fp32, (B, W), or (B, S, W) where it is ``PER_TOKEN``."""
        ...

    def said_width(self, config: Any) -> int:
        """W of a model with this configuration."""
        ...

    def soft_loss(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        counted: torch.Tensor,
        *,
        temperature: float,
    ) -> torch.Tensor:
        """Mean, over rows or over tokens that are ``counted`` (B, S), of how far a student's logits are from what its
        teacher ``said``; zero where they agree."""
        ...

    def kept(self, logits: np.ndarray, input_ids: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """What is kept of a model's logits on tokens (B, S), to measure answers by: (B, …). Where that is something of
        each token, (B, S − 1, …), it is NaN where there is none, or none that is ``counted`` (B, S).

        What comes after it here as ``logits`` is that.
        """
        ...

    def retold(
        self, kept: np.ndarray, rows: Sequence[Sequence[int]], others: Sequence[Sequence[int]], ids: np.ndarray
    ) -> np.ndarray:
        """What was kept of a model's logits, for ``same`` to hold it against that of a model with another vocabulary.

        Args:
            rows: token ids of the texts, as the model reads them.
            others: those of the same texts, as the other one does.
            ids: by the model's tokens those of the other (``tokenization.ids_in``).
        """
        ...

    def lost(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """Mean supervised loss of answers, in nats."""
        ...

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Turns logits (B, C) into what a row is scored by."""
        ...

    def divergence(self, reference: np.ndarray, logits: np.ndarray) -> float:
        """Mean over rows of how far answers are from those of a model that is to be kept; zero where they agree."""
        ...

    def same(self, logits: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """How much of two models' answers to a row is the same, (B,), from 0 to 1; NaN where it cannot be told."""
        ...

    def scores(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """How good the answer to each row is, (B,), more is better: what ``METRIC`` is the mean of and is resampled."""
        ...

    def regret(self, teacher: np.ndarray, shipped: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """How much worse the second model's answer to a row is, (N,); zero where it is not. Logits (N, C) of both."""
        ...

    def shown(self, logits: np.ndarray, labels: Sequence[str], units: Mapping[str, float]) -> dict[str, Any]:
        """An answer (C,) for people: ``label``, and its ``probability`` where there is one."""
        ...

    def shown_target(self, target: Any, labels: Sequence[str], units: Mapping[str, float]) -> str:
        """What a target was called before it was encoded."""
        ...

    def answer(self, labels: Sequence[str], units: Mapping[str, float]) -> Answer:
        """What a model is served as."""
        ...

    def describe(self, labels: Sequence[str], train_targets: np.ndarray) -> dict[str, Any]:
        """What is to be known of the training rows, to weigh answers later; in JSON."""
        ...

    def summary(self, config: Any, train: Split, logits: np.ndarray, split: Split) -> dict[str, Any]:
        """A model's answers to a split, as ``floor`` wants them; in JSON.

        Args:
            config: of the model.
            train: rows that it learned from.
            logits: its answers to ``split``.
        """
        ...

    def floor(self, about: Mapping[str, Any], *, who: str, split: str, confidence: float) -> tuple[Check, bool]:
        """Whether a model is better than one that reads nothing; and whether these rows could show it.

        Args:
            about: what ``summary`` said.
        """
        ...

    def weigh(
        self,
        rows: Mapping[str, np.ndarray],
        about: Mapping[str, Any],
        *,
        max_drop: float,
        has_floor: bool,
        confidence: float,
    ) -> tuple[list[Check], tuple[ClassRecall, ...]]:
        """The checks of quality on the test rows, and what became of each class, where there are classes.

        Args:
            rows: ``target``, and ``prediction_STAGE`` and ``score_STAGE`` of ``train`` and ``validate``, (N,) each.
            about: what ``describe`` said.
        """
        ...

    LEARNS: ColumnKind | None
    """What a column of labels is that is meant for this problem; ``None`` where a model learns from texts alone."""
    PER_TOKEN: bool
    """Whether a model answers for every token, and not for a row."""
    TOKENS_AT_ONCE: int
    """Most tokens, padding included, of which logits are computed at once where nothing learns; 0: any."""
    METRIC: str
    """What the mean of ``scores`` is called."""
    WORST: str
    """Which rows ``regret`` counts most, in words."""
    ONNX_INPUTS: tuple[str, ...]
    ONNX_OUTPUTS: tuple[str, ...]
    FIRST_TOKEN_ONLY: bool
    NO_TARGET: int


def problem_of(name: str) -> Problem:
    """Returns the module of a problem.

    Raises:
        FeatherweightError: there is no such problem.
    """
    if name not in PROBLEMS:
        raise FeatherweightError(f"problem: {name!r} is not known; choose one of {', '.join(PROBLEMS)}")
    return cast(Problem, importlib.import_module(PROBLEMS[name]))

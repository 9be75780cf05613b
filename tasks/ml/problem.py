"""What is asked of a problem, and who answers: a module of ``problems``, found by the recipe's name for it.

No stage and no other room asks which problem it has.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn

from tasks.contracts.base import FeatherweightError

PROBLEMS = {"text-classification": "tasks.ml.problems.text_classification"}


class Problem(Protocol):
    """The functions a problem module has. B = rows, S = tokens, C = classes."""

    def load_base(self, directory: str | Path, labels: Sequence[str], *, dropout: float = 0.1) -> nn.Module:
        """Loads a pretrained model with a head for these labels."""
        ...

    def build(self, config: Any) -> nn.Module:
        """Builds the model of a config, with random weights."""
        ...

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, *, label_smoothing: float = 0.0) -> torch.Tensor:
        """Mean supervised loss in nats; rows without a target are ignored."""
        ...

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Turns logits (B, C) into what a row is scored by."""
        ...

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Turns logits (B, C) into the probability of each class."""
        ...

    def correct(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Per-row correctness (B,), 0 or 1: what the paired bootstrap resamples."""
        ...

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

"""Text classification: one label per text. B = rows, S = tokens, C = classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from tasks.ml.dropout import fields

ONNX_INPUTS = ("input_ids", "attention_mask")
ONNX_OUTPUTS = ("logits",)
FIRST_TOKEN_ONLY = True
"""The head reads the last hidden state of the first token and of no other."""
NO_TARGET = -100
"""Target of a row without a label, as ``torch.nn.functional.cross_entropy`` ignores it."""


def load_base(directory: str | Path, labels: Sequence[str], *, dropout: float = 0.1) -> nn.Module:
    """Loads a pretrained encoder with a classification head for these labels, in fp32, from safetensors only."""
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    for name in fields(config):
        setattr(config, name, dropout)
    config.problem_type = "single_label_classification"
    return AutoModelForSequenceClassification.from_pretrained(
        directory,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
    )


def build(config: Any) -> nn.Module:
    """Builds the model of a config."""
    return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)


def loss(logits: torch.Tensor, targets: torch.Tensor, *, label_smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy in nats of logits (B, C) against targets (B,); rows with ``NO_TARGET`` are ignored."""
    if bool((targets == NO_TARGET).all()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits.float(), targets, ignore_index=NO_TARGET, label_smoothing=label_smoothing)


def predictions(logits: np.ndarray) -> np.ndarray:
    """Index of the most likely label per row: (B, C) → (B,)."""
    return logits.argmax(axis=-1)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of (B, C) over the labels."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def correct(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """1.0 where the most likely label of (B, C) is the target (B,), else 0.0."""
    return (predictions(logits) == targets).astype(np.float64)

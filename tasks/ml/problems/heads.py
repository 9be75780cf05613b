"""An encoder with a head on its first token: the base model's own, where it knows these labels, else a new one.

Judging imports the problems, and no torch: it is imported where a model is made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import families

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

ONNX_INPUTS = ("input_ids", "attention_mask")
ONNX_OUTPUTS = ("logits",)
FIRST_TOKEN_ONLY = True
"""The head reads the last hidden state of the first token and of no other."""

PER_TOKEN, TOKENS_AT_ONCE = False, 0

Loss = Callable[["torch.Tensor", Mapping[str, "torch.Tensor"]], "torch.Tensor"]
"""Mean loss of logits (B, C) against a batch's targets."""

logger = logging.getLogger("featherweight")


def load(
    directory: str | Path,
    labels: Sequence[str],
    *,
    dropout: float = 0.1,
    problem_type: str = "single_label_classification",
) -> nn.Module:
    """Loads a pretrained encoder with a head of an output for each of these labels, in fp32, from safetensors only.

    A classifier that knows all of these labels, by whatever numbers, keeps its head; else the classifier is new.

    Raises:
        FeatherweightError: a parameter of the backbone was not in the files.
    """
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from tasks.ml.models.dropout import fields

    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    rows = head_rows(config.id2label, labels)
    if rows is None:
        config.num_labels = len(labels)
    for name in fields(config):
        setattr(config, name, dropout)
    config.problem_type = problem_type
    model, about = AutoModelForSequenceClassification.from_pretrained(
        directory,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    family = families.of(config.model_type)
    summary, classifier = (_parameters(name) for name in (family.summary, family.classifier))
    new = {*about["missing_keys"], *(name for name, *_ in about["mismatched_keys"])}
    if lost := sorted(new.difference(summary, classifier)):
        raise FeatherweightError(f"base_model: {directory} lacks {len(lost)} tensors, such as {lost[0]}")
    if rows is not None:
        _take_rows(model.get_submodule(family.classifier), rows)
    elif not new.issuperset(classifier):  # it was trained to tell other labels
        nn.init.normal_(model.get_parameter(classifier[0]), std=config.initializer_range)
        nn.init.zeros_(model.get_parameter(classifier[1]))
    if rows is not None and new.isdisjoint(classifier):
        less = f", but new in it are {', '.join(sorted(new))}" if new else ""
        logger.info("base model: the head is kept, by the names of its labels%s", less)
    elif not about["missing_keys"].issuperset(classifier):  # where none was stored, a new head is no news
        logger.info("base model: the head is new, for the stored one is not for these labels")
    if unused := about["unexpected_keys"]:
        logger.info("base model: stored and not used are %s", ", ".join(sorted(unused)))
    family.count_positions(model)
    model.num_labels = model.config.num_labels = len(labels)
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}
    return model


def head_rows(names: Mapping[int, object], labels: Sequence[str]) -> list[int] | None:
    """Rows of a head, whose labels are named, that belong to these labels; ``None`` unless it knows all of them.

    Names may differ in case, and ``LABEL_3``, which transformers makes up, is the label 3. Names that do not
    count their rows from 0 say nothing.
    """
    known: dict[str, list[int]] = {}
    for row, name in names.items():
        known.setdefault(_folded(str(name)), []).append(int(row))
    found = [known.get(_folded(label), []) for label in labels]
    taken = [rows[0] for rows in found if len(rows) == 1]
    return taken if len(set(taken)) == len(labels) and max(names) < len(names) else None


def _folded(label: str) -> str:
    return label.casefold().removeprefix("label_")


def _take_rows(classifier: nn.Module, rows: Sequence[int]) -> None:
    """Leaves a linear layer these of its outputs, in this order."""
    state = {name: tensor[list(rows)] for name, tensor in classifier.state_dict().items()}
    families.resize_linear(classifier, out_features=len(rows))  # type: ignore[arg-type]
    classifier.load_state_dict(state)


def _parameters(linear: str) -> tuple[str, str]:
    return f"{linear}.weight", f"{linear}.bias"


def said(logits: torch.Tensor) -> torch.Tensor:
    """Logits (B, C) as they are."""
    return logits.float()


def said_width(config: Any) -> int:
    """Outputs of a model."""
    return int(config.num_labels)


def kept(logits: np.ndarray, input_ids: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Logits (B, C) as they are."""
    return logits


def retold(
    kept: np.ndarray, rows: Sequence[Sequence[int]], others: Sequence[Sequence[int]], ids: np.ndarray
) -> np.ndarray:
    """Logits as they are, which are of no tokens."""
    return kept


def amount(rows: Sequence[Sequence[int]], targets: np.ndarray | torch.Tensor, *, missing: float) -> int:
    """Rows that have a target."""
    return int((targets != missing).sum())


def lost(loss: Loss, logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean supervised loss of logits (N, C) against targets (N,)."""
    import torch

    return float(loss(torch.from_numpy(logits), {"targets": torch.as_tensor(targets)}))


def names(config: Any) -> list[str]:
    """What a model's outputs are called, in their order."""
    return [config.id2label[index] for index in range(config.num_labels)]


def build(config: Any) -> nn.Module:
    """Builds the model of a config, with random weights."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    families.of_model(model).count_positions(model)
    return model

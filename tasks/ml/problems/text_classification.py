"""Text classification: one label per text. N, B = rows, S = tokens, C = classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import log_softmax, softmax

from tasks.contracts.values import Check, ClassRecall
from tasks.ml.data.column_kinds import ColumnKind
from tasks.ml.data.tables import Table
from tasks.ml.data.targets import Targets, classes
from tasks.ml.problem import Answer
from tasks.ml.problems import class_labels, heads
from tasks.ml.proof import drop, recall
from tasks.ml.quality import classwise

if TYPE_CHECKING:
    import torch

    from tasks.ml.data.datasets import Split

LEARNS = ColumnKind.CLASSES
METRIC = "accuracy"
WORST = "on which both are surest"
ONNX_INPUTS, ONNX_OUTPUTS, FIRST_TOKEN_ONLY = heads.ONNX_INPUTS, heads.ONNX_OUTPUTS, heads.FIRST_TOKEN_ONLY
PER_TOKEN, TOKENS_AT_ONCE = heads.PER_TOKEN, heads.TOKENS_AT_ONCE
load_base, build = heads.load, heads.build
said, said_width, kept, retold = heads.said, heads.said_width, heads.kept, heads.retold
NO_TARGET = -100
"""Target of a row without a label, as ``torch.nn.functional.cross_entropy`` ignores it."""
amount = partial(heads.amount, missing=NO_TARGET)


def objections(training: Mapping[str, Any]) -> tuple[str, ...]:
    """Everything means something."""
    return ()


def targets(tables: Mapping[str, Table]) -> Targets:
    """Classes of a source's labels.

    Raises:
        FeatherweightError: labels do not look like classes, do not fit together, or are all one.
    """
    checked = class_labels.as_classes(tables)
    return classes(checked, class_labels.names(checked), missing=NO_TARGET)


def loss(logits: torch.Tensor, batch: Mapping[str, torch.Tensor], *, label_smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy in nats of logits (B, C) against targets (B,); rows with ``NO_TARGET`` are ignored."""
    import torch.nn.functional as F

    targets = batch["targets"]
    if bool((targets == NO_TARGET).all()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits.float(), targets, ignore_index=NO_TARGET, label_smoothing=label_smoothing)


lost = partial(heads.lost, loss)


def predictions(logits: np.ndarray) -> np.ndarray:
    """Index of the most likely label per row: (B, C) → (B,)."""
    return logits.argmax(axis=-1)


def soft_loss(
    student: torch.Tensor, teacher: torch.Tensor, counted: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """KL(teacher ‖ student) between softened label distributions, in nats per row, of logits (B, C)."""
    from tasks.ml.distillation import losses

    return losses.soft_cross_entropy(student, teacher, temperature=temperature)


def divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """Mean KL(p‖q) in nats per row of the softmaxes of two arrays of logits (N, C)."""
    p, q = (log_softmax(values.astype(np.float64), axis=-1) for values in (reference, logits))
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def same(logits: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Whether the most likely label is the same, (N,)."""
    return predictions(logits) == predictions(reference)


def scores(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """1.0 where the most likely label of (B, C) is the target (B,), else 0.0."""
    return (predictions(logits) == targets).astype(np.float64)


def regret(teacher: np.ndarray, shipped: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """How sure both are where the teacher alone is right: the smaller probability that they give to their answers."""
    sureness = np.minimum(*(softmax(logits, axis=-1).max(axis=-1) for logits in (teacher, shipped)))
    return np.where(scores(teacher, targets) > scores(shipped, targets), sureness, 0.0)


def shown(logits: np.ndarray, labels: Sequence[str], units: Mapping[str, float]) -> dict[str, Any]:
    """The most likely label and its probability."""
    return {"label": labels[int(logits.argmax())], "probability": round(float(softmax(logits).max()), 4)}


def shown_target(target: int, labels: Sequence[str], units: Mapping[str, float]) -> str:
    """The label."""
    return labels[target]


def answer(labels: Sequence[str], units: Mapping[str, float]) -> Answer:
    """The most likely label, with probabilities."""
    return Answer("label", labels, f"Tells which of {len(labels)} labels a text has")


def describe(labels: Sequence[str], train_targets: np.ndarray) -> dict[str, Any]:
    """Labels by class index, and which of them the training rows have most of."""
    return classwise.describe(labels, train_targets)


def summary(config: Any, train: Split, logits: np.ndarray, split: Split) -> dict[str, Any]:
    """A model's answers to a split, as ``floor`` wants them: counted by class."""
    labels = heads.names(config)
    counts = classwise.tally(predictions(logits), split.targets, len(labels))
    return describe(labels, train.targets) | {"answers": counts.to_json()}


def floor(about: Mapping[str, Any], *, who: str, split: str, confidence: float) -> tuple[Check, bool]:
    """Whether a model beats the answer that is always the most frequent label; and whether these rows could show it."""
    counts = classwise.Tally.from_json(about["answers"])
    check = recall.floor(counts, about, who=who, split=split, confidence=confidence)
    return check, recall.is_decidable(counts, about, confidence=confidence)


def weigh(
    rows: Mapping[str, np.ndarray], about: Mapping[str, Any], *, max_drop: float, has_floor: bool, confidence: float
) -> tuple[list[Check], tuple[ClassRecall, ...]]:
    """What accuracy was lost; with a floor, whether a class was, and whether the shipped model beats the majority."""
    labels, level = about["labels"], confidence
    fates = classwise.fates(
        rows["prediction_train"], rows["prediction_validate"], rows["target"], len(labels), confidence=level
    )
    checks = [drop.of_hits(rows["score_train"], rows["score_validate"], limit=max_drop, confidence=level)]
    if has_floor:
        counts = classwise.tally(rows["prediction_validate"], rows["target"], len(labels))
        checks += [
            recall.lost(fates, labels, max_drop=max_drop, confidence=level),
            recall.floor(counts, about, who="the shipped model", split="test", confidence=level),
        ]
    return checks, recall.recalls(fates, labels)

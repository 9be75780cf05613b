"""What a model does class by class: against always giving the most frequent label, and against its teacher.

Accuracy does not see a class with few rows. Whether a model reads its texts at all, and whether a smaller one still
finds every class, is told here, from counts and with exact tests. N = rows, C = classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import bdtr, bdtrc, gammaln

from tasks.ml.statistics import discordance, multiplicity
from tasks.ml.statistics.bootstrap import Interval


class Tally(NamedTuple):
    """Answers to the rows of a split, counted by class: (C,) each."""

    rows: np.ndarray
    """Rows that are of the class."""
    right: np.ndarray
    """Those of them that the model calls so."""
    named: np.ndarray
    """Rows that the model calls so, rightly or not."""

    def to_json(self) -> dict[str, Any]:
        return {name: values.tolist() for name, values in self._asdict().items()}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Tally:
        return cls(*(np.array(document[name], dtype=np.int64) for name in cls._fields))


def tally(predictions: np.ndarray, targets: np.ndarray, num_classes: int) -> Tally:
    """Counts predicted and true class indices (N,)."""
    hits = targets[predictions == targets]
    return Tally(*(np.bincount(values, minlength=num_classes) for values in (targets, hits, predictions)))


def describe(labels: Sequence[str], train_targets: np.ndarray) -> dict[str, Any]:
    """``labels`` by class index, ``majority``, the most frequent class of the training rows (N,), and its share."""
    counts = np.bincount(train_targets[train_targets >= 0], minlength=len(labels))
    return {
        "labels": list(labels),
        "majority": int(counts.argmax()),
        "majority_share": float(counts.max() / counts.sum()),
    }


def balanced_accuracy(rows: np.ndarray, right: np.ndarray) -> float:
    """Mean recall of the classes that have rows, from counts (C,): always one answer gives one over their number."""
    return float((right[rows > 0] / rows[rows > 0]).mean())


class Standing(NamedTuple):
    """A model beside the answer that is the same for every text."""

    right: int
    majority_right: int
    n: int
    gain: Interval
    """Accuracy above the majority answer's, paired by row."""
    others_p: float
    """One-sided p-value of Fisher's exact test that the model calls a row other than the majority class no more often
    where the row is of another class."""
    balanced_accuracy: float
    rows_needed: int | None
    """Rows at which the gain would be told from none, if the rates are those observed."""


def against_majority(counts: Tally, majority_class: int, *, confidence: float = 0.95) -> Standing:
    """Compares a model with the answer that gives every row the same class.

    Where nearly all rows are of one class, the right answers to all others may be too few for accuracy to tell; that
    they were not found by chance is then seen in the table of two by two, majority class or not, said and true: Fisher
    1935, *The Logic of Inductive Inference*.
    """
    n, right = int(counts.rows.sum()), int(counts.right.sum())
    theirs, shared = int(counts.rows[majority_class]), int(counts.right[majority_class])
    lost, gained = theirs - shared, right - shared
    called = n - int(counts.named[majority_class])
    return Standing(
        right=right,
        majority_right=theirs,
        n=n,
        gain=discordance.gain(lost, gained, n, confidence=confidence),
        others_p=_overlap_p(called - lost, of=n - theirs, drawn=called, n=n),
        balanced_accuracy=balanced_accuracy(counts.rows, counts.right),
        rows_needed=discordance.rows_needed(lost, gained, n, rule_out=0.0, confidence=confidence),
    )


def _overlap_p(found: int, *, of: int, drawn: int, n: int) -> float:
    """Probability that ``drawn`` of n rows, taken by chance, hold at least ``found`` of the ``of`` that are marked."""
    k = np.arange(found, min(of, drawn) + 1)

    def log_choose(total: Any, part: Any) -> Any:
        return gammaln(total + 1) - gammaln(part + 1) - gammaln(total - part + 1)

    k = k[drawn - k <= n - of]
    logs = log_choose(of, k) + log_choose(n - of, drawn - k) - log_choose(n, drawn)
    return float(min(1.0, np.exp(logs).sum()))


class Fate(NamedTuple):
    """What became of one class from the teacher to the shipped model."""

    rows: int
    teacher: int
    """Rows that the teacher finds."""
    shipped: int
    lost: int
    """Rows that only the teacher finds."""
    gained: int
    change: Interval
    """Recall gained, paired by row."""
    churn_p: float
    """How likely a class that the teacher finds would lose as many rows if all classes lost them at the rate of the
    others; by Holm's procedure over these classes."""
    mcnemar_p: float
    """One-sided p-value of the exact McNemar test within the class that the shipped model finds no fewer rows."""

    @property
    def is_halved(self) -> bool:
        """Whether the shipped model finds fewer than half of what the teacher finds, and that is more than a row."""
        return self.teacher >= FOUND and 2 * self.shipped < self.teacher


FOUND = 2
"""Rows of a class that a teacher must have right to be said to find it: one may be an accident."""


def fates(
    teacher: np.ndarray, shipped: np.ndarray, targets: np.ndarray, num_classes: int, *, confidence: float = 0.95
) -> dict[int, Fate]:
    """Compares two models class by class, from their predictions and the true classes, (N,) each.

    Returns:
        By class index, those that have rows.
    """

    def by_class(marked: np.ndarray) -> np.ndarray:
        return np.bincount(targets[marked], minlength=num_classes)

    before, after = teacher == targets, shipped == targets
    rows, right, kept = by_class(targets >= 0), by_class(before), by_class(after)
    lost, gained = by_class(before & ~after), by_class(after & ~before)
    # One row more that is lost and one that is kept: a rate of nothing would make every single row a finding.
    rate = (lost.sum() - lost + 1) / (right.sum() - right + 2)
    found = np.flatnonzero(right >= FOUND)
    churn = np.ones(num_classes)
    churn[found] = multiplicity.holm([float(bdtrc(lost[c] - 1, right[c], rate[c])) if lost[c] else 1.0 for c in found])
    return {
        int(c): Fate(
            rows=int(rows[c]),
            teacher=int(right[c]),
            shipped=int(kept[c]),
            change=discordance.gain(int(lost[c]), int(gained[c]), int(rows[c]), confidence=confidence),
            lost=int(lost[c]),
            gained=int(gained[c]),
            churn_p=float(churn[c]),
            mcnemar_p=float(bdtr(gained[c], lost[c] + gained[c], 0.5)),
        )
        for c in np.flatnonzero(rows)
    }

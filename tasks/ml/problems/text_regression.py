"""Regression on a score: one number per text, in units of its spread among the training rows. N, B = rows.

Scores are learned as (score − mean) / standard deviation of the training rows, so that 0 is the answer of a model that
reads nothing. Quality is the coefficient of determination against that answer: 1 − Σ error² / Σ target².
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Check, CheckStatus, ClassRecall
from tasks.ml.data.column_kinds import ColumnKind
from tasks.ml.data.label_kinds import is_number
from tasks.ml.data.tables import Table
from tasks.ml.data.targets import Targets
from tasks.ml.problem import Answer
from tasks.ml.problems import heads
from tasks.ml.proof import drop
from tasks.ml.proof.decision import above_nothing, as_check
from tasks.ml.statistics.bootstrap import quality_difference

if TYPE_CHECKING:
    import torch

    from tasks.ml.data.datasets import Split

LEARNS = ColumnKind.SCORES
METRIC = "r2"
WORST = "on which the error grew most"
ONNX_INPUTS, ONNX_OUTPUTS, FIRST_TOKEN_ONLY = heads.ONNX_INPUTS, heads.ONNX_OUTPUTS, heads.FIRST_TOKEN_ONLY
PER_TOKEN, TOKENS_AT_ONCE = heads.PER_TOKEN, heads.TOKENS_AT_ONCE
load_base, build = partial(heads.load, problem_type="regression"), heads.build
said, said_width, kept, retold = heads.said, heads.said_width, heads.kept, heads.retold
NO_TARGET = -math.inf
amount = partial(heads.amount, missing=NO_TARGET)
STRATA = 5
"""Ranges of scores of which every split gets its share."""
SAME = 0.1
"""Two answers are the same if they are nearer than that, in standard deviations of the scores."""
TINY = 1e-12
"""Stands for no spread at all, where all rows of a split have the mean."""
FARTHEST = 1e6
"""Standard deviations from the mean beyond which a score is a mistake."""


def objections(training: Mapping[str, Any]) -> Iterator[str]:
    """Label smoothing spreads probability over labels, and a score has none."""
    if training["label_smoothing"]:
        yield f"training.label_smoothing: {training['label_smoothing']:g} means nothing for scores; set it to 0"


def targets(tables: Mapping[str, Table]) -> Targets:
    """Scores of a source's labels.

    Raises:
        FeatherweightError: a label is not a finite number, or all are the same.
    """
    train = tables["train"]
    known = {name: replace(table, labels=list(_numbers(table))) for name, table in tables.items()}
    values = np.sort([float(label) for label in known["train"].labels])
    if values[0] == values[-1]:
        raise FeatherweightError(
            f"{train.origin}, column {train.label_column!r}: every row has the score {train.labels[0]}; at least two "
            "different ones are needed to learn a difference"
        )
    edges = _edges(values)
    strata = [f"up to {edge:.15g}" for edge in edges] + [f"above {edges[-1]:.15g}" if edges else "any score"]
    return Targets(
        tables=known,
        names=[train.label_column],
        strata=strata,
        stratum=lambda label: strata[bisect.bisect_left(edges, float(label))],
        required=(),
        settle=lambda labels: repr(math.fsum(float(label) / len(labels) for label in labels)),
        measure=_units,
        encode=_encoded,
        missing=NO_TARGET,
        dtype=np.float32,
    )


def _numbers(table: Table) -> Iterator[str]:
    """Labels, each number written in one way."""
    for index, label in enumerate(table.labels):
        if not is_number(label) or not math.isfinite(float(label)):
            other = label.replace(",", ".").strip("%$€£ ")
            mend = (
                f"write {other}"
                if is_number(other) and other != label
                else "give the row a score, such as 4.5, or remove it"
            )
            raise FeatherweightError(
                f"{table.place(index)}, column {table.label_column!r}: {label[:80]!r} is not a number, which problem: "
                f"text-regression learns; {mend}, or name a column of numbers in data.label"
            )
        yield repr(float(label))


def _edges(ordered: np.ndarray) -> list[float]:
    """Scores that part sorted ones into up to ``STRATA`` ranges of a fifth of the rows or more; the last of a tenth."""
    n, start, edges = len(ordered), 0, []
    while start + n / STRATA < n:
        edge = ordered[math.ceil(start + n / STRATA) - 1]
        start = int(np.searchsorted(ordered, edge, side="right"))
        if n - start < n / STRATA / 2:
            break
        edges.append(float(edge))
    return edges


def _units(labels: Sequence[str]) -> dict[str, float]:
    """Mean and standard deviation of scores, whatever their order."""
    values = [float(label) for label in labels]
    try:
        mean = math.fsum(values) / len(values)
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    except OverflowError:
        spread = math.inf
    if not 1e-100 < spread < 1e100:
        raise FeatherweightError(
            f"the scores of the training rows have a standard deviation of {spread:g}, which cannot be learned; write "
            "them in another unit, or add rows with other scores"
        )
    return {"mean": mean, "spread": spread}


def _encoded(label: str, units: Mapping[str, float]) -> float:
    target = (float(label) - units["mean"]) / units["spread"]
    if abs(target) > FARTHEST:
        raise FeatherweightError(
            f"the score {label} is {target:.3g} standard deviations from the mean of the training rows; correct or "
            "remove its row"
        )
    return target


def loss(logits: torch.Tensor, batch: Mapping[str, torch.Tensor], *, label_smoothing: float = 0.0) -> torch.Tensor:
    """Mean squared error of logits (B, 1) against targets (B,); rows with ``NO_TARGET`` are ignored."""
    targets = batch["targets"]
    known = targets != NO_TARGET
    errors = logits.float().squeeze(-1)[known] - targets[known]
    return errors.square().sum() / known.sum().clamp_min(1)


lost = partial(heads.lost, loss)


def soft_loss(
    student: torch.Tensor, teacher: torch.Tensor, counted: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """Mean squared difference of logits (B, 1); a score has no temperature."""
    return (student.float() - teacher.float()).square().mean()


def predictions(logits: np.ndarray) -> np.ndarray:
    """The score of each row: (N, 1) → (N,)."""
    return logits[..., 0]


def divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """Mean squared difference of two arrays of logits (N, 1)."""
    return float(np.square(predictions(reference).astype(np.float64) - predictions(logits)).mean())


def same(logits: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Whether two scores are nearer than ``SAME``, (N,)."""
    return np.abs(predictions(logits) - predictions(reference)) < SAME


def scores(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """1 − squared error of logits (N, 1), over the mean of these rows' squared targets (N,)."""
    known = targets.astype(np.float64)
    return 1 - np.square(predictions(logits).astype(np.float64) - known) / max(float(np.square(known).mean()), TINY)


def regret(teacher: np.ndarray, shipped: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Score lost, where the two do not say the same."""
    lost = scores(teacher, targets) - scores(shipped, targets)
    return np.where(same(shipped, teacher), 0.0, lost.clip(0))


def shown(logits: np.ndarray, labels: Sequence[str], units: Mapping[str, float]) -> dict[str, Any]:
    """The score, in the unit of the labels."""
    return {"label": shown_target(logits[0], labels, units)}


def shown_target(target: float, labels: Sequence[str], units: Mapping[str, float]) -> str:
    """The score, in the unit of the labels, to a hundredth of their spread."""
    digits = 2 - math.floor(math.log10(units["spread"]))
    return f"{round(units['mean'] + units['spread'] * float(target), digits):.15g}"


def answer(labels: Sequence[str], units: Mapping[str, float]) -> Answer:
    """A number in the unit of the labels."""
    return Answer("score", labels, "Gives each text a number", units)


def describe(labels: Sequence[str], train_targets: np.ndarray) -> dict[str, Any]:
    """What the output is called; the mean and the spread of the training rows are 0 and 1 by their unit."""
    return {"labels": list(labels)}


def summary(config: Any, train: Split, logits: np.ndarray, split: Split) -> dict[str, Any]:
    """A model's answers to a split beside their targets, as ``floor`` wants them."""
    answers = {"answers": predictions(logits).tolist(), "targets": split.targets.tolist()}
    return describe(heads.names(config), train.targets) | answers


def floor(about: Mapping[str, Any], *, who: str, split: str, confidence: float) -> tuple[Check, bool]:
    """Whether a model beats the answer that is always the mean of the training rows; and whether these rows could show
    that of one without an error."""
    answers, truth = (np.array(about[name], dtype=np.float64) for name in ("answers", "targets"))
    found, best = (
        _above_the_mean(said, truth, who=who, split=split, confidence=confidence) for said in (answers, truth)
    )
    return found, best.status is CheckStatus.PASSED


def _above_the_mean(answers: np.ndarray, targets: np.ndarray, *, who: str, split: str, confidence: float) -> Check:
    found, blind = (scores(said[:, None], targets) for said in (answers, np.zeros_like(targets)))
    gain = quality_difference(found, blind, confidence=confidence)
    status = above_nothing(gain)
    explanation = (
        f"{who} has an {METRIC} of {found.mean():.3f} on {len(found):,} {split} rows, {100 * gain.measured:.1f} points "
        f"above always answering the mean of the training rows ({100 * confidence:g} % interval {100 * gain.low:.1f} "
        f"to {100 * gain.high:.1f})"
    )
    if status is CheckStatus.UNDECIDABLE:
        explanation += f"; {drop.enough(drop.rows_needed(gain, len(targets), rule_out=0.0))}"
    return as_check("floor", gain, 0.0, "at_least", len(found), status, explanation)


def weigh(
    rows: Mapping[str, np.ndarray], about: Mapping[str, Any], *, max_drop: float, has_floor: bool, confidence: float
) -> tuple[list[Check], tuple[ClassRecall, ...]]:
    """What of R² was lost; with a floor, whether the shipped model beats the mean."""
    teacher, shipped = rows["score_train"], rows["score_validate"]
    checks = [drop.of_scores(teacher, shipped, metric=METRIC, limit=max_drop, confidence=confidence)]
    if has_floor:
        checks.append(
            _above_the_mean(
                rows["prediction_validate"],
                rows["target"],
                who="the shipped model",
                split="test",
                confidence=confidence,
            )
        )
    return checks, ()

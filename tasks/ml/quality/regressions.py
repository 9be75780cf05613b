"""The rows that a smaller model lost: what its teacher has right and it has wrong. N = rows, C = classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tasks.ml.data import datasets
from tasks.ml.problem import problem_of


def worst(
    data: Path, problem_name: str, logits: Mapping[str, np.ndarray], *, count: int = 10, characters: int = 400
) -> dict[str, Any]:
    """The test rows that the teacher has right and the shipped model wrong, the surest of both first.

    How sure both are is the smaller of the two probabilities that they give to their own answers.

    Args:
        logits: (N, C) of the teacher, ``train``, and of the shipped model, ``validate``.
        count: rows to describe at most.
        characters: after how many a text is cut.

    Returns:
        Rows in all, rows with another answer, and how many of these are lost and gained; then the worst: number, text,
        true label, and each model's label with its probability.
    """
    problem, rows, labels = problem_of(problem_name), datasets.read(data, "test"), datasets.info(data).labels
    answers = {stage: problem.predictions(logits[stage]) for stage in ("train", "validate")}
    sureness = {stage: problem.probabilities(logits[stage]).max(axis=-1) for stage in answers}
    correct = {stage: problem.scores(logits[stage], rows.targets) for stage in answers}
    lost = np.flatnonzero(correct["train"] > correct["validate"])
    surest = lost[np.argsort(-np.minimum(sureness["train"], sureness["validate"])[lost], kind="stable")][:count]

    def said(stage: str, row: int) -> dict[str, Any]:
        return {"label": labels[answers[stage][row]], "probability": round(float(sureness[stage][row]), 4)}

    def shortened(text: str) -> str:
        return text if len(text) <= characters else f"{text[:characters].rstrip()}…"

    return {
        "n": len(rows),
        "apart": int((answers["train"] != answers["validate"]).sum()),
        "lost": len(lost),
        "gained": int((correct["train"] < correct["validate"]).sum()),
        "rows": [
            {
                "row": int(row),
                "text": shortened(rows.texts[row]),
                "target": labels[rows.targets[row]],
                "teacher": said("train", row),
                "shipped": said("validate", row),
            }
            for row in surest
        ],
    }

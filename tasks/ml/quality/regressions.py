"""The rows that a smaller model lost: those on which its answer is worse than its teacher's. N = rows, C = outputs."""

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
    """The test rows on which the shipped model's answer is worse than the teacher's, most regretted first.

    Args:
        logits: (N, C) of the teacher, ``train``, and of the shipped model, ``validate``.
        count: rows to describe at most.
        characters: after how many a text is cut.

    Returns:
        Rows in all, those whose answers can be compared, of these rows with another answer, how many are lost and how
        many gained, and which are the worst; then these: number, text, true label, and each model's answer.
    """
    problem, rows, about = problem_of(problem_name), datasets.read(data, "test"), datasets.info(data)
    teacher, shipped = logits["train"], logits["validate"]
    regret, alike = problem.regret(teacher, shipped, rows.targets), problem.same(shipped, teacher)
    lost = int((regret > 0).sum())

    def shortened(text: str) -> str:
        return text if len(text) <= characters else f"{text[:characters].rstrip()}…"

    return {
        "n": len(rows),
        "compared": int((~np.isnan(alike)).sum()),
        "apart": int((alike < 1).sum()),
        "lost": lost,
        "gained": int((problem.regret(shipped, teacher, rows.targets) > 0).sum()),
        "worst": problem.WORST,
        "rows": [
            {
                "row": int(row),
                "text": shortened(rows.texts[row]),
                "target": problem.shown_target(rows.targets[row], about.labels, about.units),
                "teacher": problem.shown(teacher[row], about.labels, about.units),
                "shipped": problem.shown(shipped[row], about.labels, about.units),
            }
            for row in np.argsort(-regret, kind="stable")[: min(count, lost)]
        ],
    }

"""What stages left beside their models, and the one list of models that everything in the report is drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.contracts import Outcome

TITLES = {"train": "Teacher", "distill": "Student", "prune": "Pruned", "quantize": "Quantized", "validate": "Shipped"}
"""What a stage's model is called in words."""


@dataclass(frozen=True)
class Evidence:
    """The JSON documents of a run; empty where a stage left none."""

    histories: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """By stage name: ``history.json`` of the stages that train."""
    operators: Mapping[str, Any] = field(default_factory=dict)
    validation: Mapping[str, Any] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)


def models(outcome: Outcome, evidence: Evidence) -> list[dict[str, Any]]:
    """Returns one row per model of the lineage, teacher first: stage, title, split, n, accuracy, size_mb, latencies, …

    From the validation where it ran (test split, one harness for all); else from what each stage measured itself.
    """
    if evidence.validation:
        split = evidence.validation["split"]
        return [{"split": split, **row} for row in evidence.validation["models"]]
    return [
        {
            "stage": result.stage,
            "title": TITLES.get(result.stage, result.stage),
            "runtime": "",
            "n": result.scorecard.num_examples,
            **result.scorecard.model_dump(),
        }
        for result in outcome.stages
        if result.bundle and result.scorecard.accuracy is not None
    ]

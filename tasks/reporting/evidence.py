"""What stages left beside their models, and the one list of models that everything in the report is drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tasks.contracts.values import ClassRecall, Outcome
from tasks.ml.statistics import bootstrap, discordance
from tasks.ml.statistics.bootstrap import Interval
from tasks.ml.statistics.discordance import Discordance
from tasks.reporting import measures

TITLES = {"train": "Teacher", "distill": "Student", "prune": "Pruned", "quantize": "Quantized", "validate": "Shipped"}
"""What a stage's model is called in words."""


class Comparison(NamedTuple):
    """A model beside its teacher, on the same rows of the test split."""

    counts: Discordance
    drop: Interval
    """Quality lost, with its paired interval of 95 %."""
    mcnemar_p: float


class SeedRun(NamedTuple):
    """A run of the recipe with one seed: how teacher and shipped model did on the rows (N,) that all seeds share."""

    seed: int
    run_id: str
    date: str
    teacher: np.ndarray
    shipped: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """The JSON documents of a run; empty where a stage left none."""

    histories: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """By stage name: ``history.json`` of the stages that train."""
    operators: Mapping[str, Any] = field(default_factory=dict)
    validation: Mapping[str, Any] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)
    sensitivity: Mapping[str, Any] = field(default_factory=dict)
    """What each group of linear layers loses by quantization, where that was measured."""
    regressions: Mapping[str, Any] = field(default_factory=dict)
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    """By stage name: every model after the teacher."""
    seeds: tuple[SeedRun, ...] = ()
    """Runs that differ in their seed only, this one among them; empty where it is the only one."""


def scores(path: Path, prefixes: tuple[str, ...] = ("score_", "correct_")) -> dict[str, np.ndarray]:
    """Reads what ``validate`` left of each row, by stage (N,): how good an answer is; ``correct`` once."""
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
        return {
            name.partition("_")[2]: table[name].to_numpy(zero_copy_only=False).copy()
            for name in table.column_names
            if name.startswith(prefixes)
        }


def compare(path: Path, *, metric: str = "accuracy") -> dict[str, Comparison]:
    """Compares every model with the teacher, row by row; rows that both answer the same are neither lost nor gained."""
    found_scores, same = scores(path), scores(path, ("agrees_",))
    teacher, found = found_scores.pop("train"), {}
    # Scores that are no fractions have no row more that one model alone would win.
    difference = bootstrap.quality_difference if measures.of(metric).percent else bootstrap.paired_difference
    for stage, right in found_scores.items():
        alike = np.asarray(same.get(stage, False)) >= 1
        counts = discordance.count(teacher, np.where(alike, teacher, right))
        drop = difference(teacher, right)
        found[stage] = Comparison(counts, drop, discordance.mcnemar(counts.lost, counts.gained))
    return found


def over_seeds(runs: Sequence[SeedRun]) -> Interval:
    """Quality lost, with its interval of 95 % over rows and seeds; of one run or more."""
    teacher, shipped = (np.stack([getattr(one, name) for one in runs]) for name in ("teacher", "shipped"))
    return bootstrap.quality_difference_over_seeds(teacher, shipped)


def balanced_accuracy(recalls: Sequence[ClassRecall]) -> tuple[float, float]:
    """The mean of recalls over classes, of the teacher and of the shipped model."""
    return fmean(one.teacher / one.n for one in recalls), fmean(one.shipped / one.n for one in recalls)


def named(document: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured, with quality by its own name: earlier versions knew accuracy only."""
    return {"metric": "accuracy", "quality": document.get("accuracy"), **document}


def models(outcome: Outcome, evidence: Evidence) -> list[dict[str, Any]]:
    """Returns one row per model of the lineage, teacher first: stage, title, split, n, quality, size_mb, latencies, …

    From the validation where it ran (test split, one harness for all); else from what each stage measured itself.
    """
    if evidence.validation:
        split = evidence.validation["split"]
        return [{"split": split, **named(row)} for row in evidence.validation["models"]]
    return [
        {
            "stage": result.stage,
            "title": TITLES.get(result.stage, result.stage),
            "runtime": "",
            "n": result.scorecard.num_examples,
            **result.scorecard.model_dump(),
        }
        for result in outcome.stages
        if result.bundle and result.scorecard.quality is not None
    ]

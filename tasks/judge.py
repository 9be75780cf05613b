"""judge: holds what was measured against the budget, under uncertainty: first the teacher, then the shipped model.

The rule, and why it is the rule: ``infra/decisions/0002-verdict-rule.md``.
"""

from __future__ import annotations

import json
import logging
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field

from tasks.contracts.base import StageConfig
from tasks.contracts.values import Check, CheckStatus, Digest, Verdict
from tasks.engine import store, tracking
from tasks.engine.step import step
from tasks.ml.proof.decision import as_check, decide

logger = logging.getLogger("featherweight")


class Floor(StrEnum):
    MAJORITY = "majority"
    NONE = "none"


class BudgetConfig(StageConfig):
    """What the shipped model must reach against its teacher."""

    max_quality_drop: float = Field(0.015, ge=-1, le=1, title="Quality drop allowed")
    """Largest loss of accuracy, or of R² where scores are learned, against the teacher (0.015 = 1.5 points), paired on
    test."""
    min_shrink: float = Field(4.0, gt=0, title="Shrink wanted")
    """How many times smaller than the teacher's fp32 weights."""
    min_speedup: float = Field(3.0, gt=0, title="Speed-up wanted")
    """How many times faster at p50, one real text, than the eager fp32 teacher."""
    floor: Floor = Field(Floor.MAJORITY, title="Floor")
    """majority: the teacher must be shown on the selection split to beat the answer that is always the most frequent
    label, or the mean score, or the run ends there; so must the shipped model on test, which may lose no class. none:
    nothing of it is asked, for trials with very few rows."""
    confidence: float = Field(0.95, gt=0.5, lt=1, title="Confidence")
    """Level of the intervals."""


def _shrink(teacher: dict[str, Any], shipped: dict[str, Any], budget: BudgetConfig) -> Check:
    from tasks.ml.statistics.bootstrap import Interval

    ratio = teacher["size_mb"] / shipped["size_mb"]
    interval, limit = Interval(ratio, ratio, ratio), budget.min_shrink
    status = decide(interval, limit, "at_least", band=(limit / 2, limit * 2))
    explanation = (
        f"weights went from {teacher['size_mb']:.2f} to {shipped['size_mb']:.2f} MB, {ratio:.2f} times smaller; "
        f"at least {limit:g} times is wanted"
    )
    return as_check("shrink", interval, limit, "at_least", 2, status, explanation)


BUSY = 0.1
"""Share of a machine that others may have while models are timed, before it is said."""


def _speedup(teacher: dict[str, Any], shipped: dict[str, Any], budget: BudgetConfig, *, others_share: float) -> Check:
    """How much faster the shipped model is.

    Args:
        others_share: fraction of the machine's time that other processes had meanwhile.
    """
    from tasks.ml.statistics import bootstrap

    slow, fast = teacher["latency_p50_rounds_ms"], shipped["latency_p50_rounds_ms"]
    interval, limit = bootstrap.ratio_of_medians(slow, fast, confidence=budget.confidence), budget.min_speedup
    status = decide(interval, limit, "at_least", band=(limit / 2, limit * 2))
    explanation = (
        f"p50 latency of one text is {interval.measured:.2f} times lower ({100 * budget.confidence:g} % interval "
        f"{interval.low:.2f} to {interval.high:.2f} over {len(fast)} rounds); at least {limit:g} times is wanted"
    )
    if status is CheckStatus.UNDECIDABLE:
        explanation += "; the timings spread too far, use a quieter machine or more repeats"
    if others_share > BUSY:
        explanation += f"; other processes had {100 * others_share:.0f} % of the machine meanwhile"
    return as_check("speedup", interval, limit, "at_least", len(fast), status, explanation)


def weigh(evidence: Path, budget: BudgetConfig) -> Verdict:
    """Compares the shipped model with its teacher, from the files that ``validate`` left. Pure."""
    import pyarrow as pa

    from tasks.ml.problem import problem_of

    document = json.loads((evidence / "validation.json").read_text(encoding="utf-8"))
    teacher = next(model for model in document["models"] if model["stage"] == "train")
    shipped = next(model for model in document["models"] if model["stage"] == "validate")
    table = pa.ipc.open_file(evidence / "rows.arrow").read_all()
    checks, recalls = problem_of(document["problem"]).weigh(
        {name: table[name].to_numpy() for name in table.column_names},
        document["rows"],
        max_drop=budget.max_quality_drop,
        has_floor=budget.floor is Floor.MAJORITY,
        confidence=budget.confidence,
    )
    others_share = document["device"].get("others_share", 0.0)  # which documents of older runs do not say
    checks += [_shrink(teacher, shipped, budget), _speedup(teacher, shipped, budget, others_share=others_share)]
    return Verdict(checks=tuple(checks), recalls=recalls)


@step(name="floor")
def floor(teacher: Digest, budget: BudgetConfig, *, run_id: str) -> Verdict | None:
    """Weighs the teacher, from what ``train`` left, before anything is made of it.

    Returns:
        The verdict that the run ends with; ``None`` if it goes on.
    """
    from tasks.ml.problem import problem_of

    if budget.floor is Floor.NONE:
        return None
    about = json.loads((store.path(teacher) / "answers.json").read_text(encoding="utf-8"))
    check, is_decidable = problem_of(about["problem"]).floor(
        about, who="the teacher", split="selection", confidence=budget.confidence
    )
    if check.status is CheckStatus.PASSED:
        logger.info("floor: %s", check.explanation)
        return None
    if not is_decidable:
        logger.warning("floor: %s; the run goes on, and the test split decides", check.explanation)
        return None
    hint = "look at labels, base model and learning rate, or let such a run go on with budget.floor: none"
    verdict = Verdict(checks=(check.model_copy(update={"explanation": f"{check.explanation}; {hint}"}),))
    _record(verdict, run_id)
    return verdict


@step(name="judge")
def judge(evidence: Digest, budget: BudgetConfig, *, run_id: str) -> Verdict:
    """Weighs the evidence against the budget and records every check on the parent run."""
    verdict = weigh(store.path(evidence), budget)
    _record(verdict, run_id)
    return verdict


def _record(verdict: Verdict, run_id: str) -> None:
    run = tracking.Run(run_id)
    for check in verdict.checks:
        run.metrics({check.name: check.measured, f"{check.name}_low": check.low, f"{check.name}_high": check.high})
        if check.parting:
            tests = check.parting.model_dump(exclude={"margin", "confidence"}, exclude_none=True)
            run.metrics({f"{check.name}_{name}": float(value) for name, value in tests.items()})
    run.tags({"featherweight.verdict": verdict.status.value, "featherweight.verdict_reason": verdict.reason})

"""judge: holds what was measured against the budget, under uncertainty: first the teacher, then the shipped model.

The rule, and why it is the rule: ``infra/decisions/0002-verdict-rule.md``.
"""

from __future__ import annotations

import json
import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tasks.contracts.base import StageConfig
from tasks.contracts.values import Check, CheckStatus, Digest, Parting, Verdict
from tasks.engine import store, tracking
from tasks.engine.step import step
from tasks.ml.proof import classes

if TYPE_CHECKING:
    from tasks.ml.statistics.bootstrap import Interval

logger = logging.getLogger("featherweight")

Direction = Literal["at_most", "at_least"]


class Floor(StrEnum):
    MAJORITY = "majority"
    NONE = "none"


class BudgetConfig(StageConfig):
    """What the shipped model must reach against its teacher."""

    max_quality_drop: float = Field(
        0.015,
        ge=-1,
        le=1,
        title="Quality drop allowed",
        description="Largest loss of accuracy against the teacher (0.015 = 1.5 points), paired on test.",
    )
    min_shrink: float = Field(
        4.0, gt=0, title="Shrink wanted", description="How many times smaller than the teacher's fp32 weights."
    )
    min_speedup: float = Field(
        3.0,
        gt=0,
        title="Speed-up wanted",
        description="How many times faster at p50, one real sentence, than the eager fp32 teacher.",
    )
    floor: Floor = Field(
        Floor.MAJORITY,
        title="Floor",
        description="majority: the teacher must be shown on the selection split to beat the answer that is always the "
        "most frequent label, or the run ends there; so must the shipped model on test, which may lose no class. none: "
        "nothing of it is asked, for trials with very few rows.",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, title="Confidence", description="Level of the intervals.")


def decide(interval: Interval, limit: float, direction: Direction, *, band: tuple[float, float]) -> CheckStatus:
    """Passed or failed by the measured value, if its interval rules out a clearly different answer.

    Args:
        band: a value clearly below the limit and one clearly above it. What is measured below the limit counts once the
            interval ends below the upper one; what is measured above, once it begins above the lower one.
    """
    measured, low, high = interval
    met = measured <= limit if direction == "at_most" else measured >= limit
    below = met if direction == "at_most" else not met
    if not (high < band[1] if below else low > band[0]):
        return CheckStatus.UNDECIDABLE
    return CheckStatus.PASSED if met else CheckStatus.FAILED


def _quality_drop(teacher: Any, shipped: Any, budget: BudgetConfig) -> Check:
    """Accuracy lost, from per-row correctness (N,) of both models on the same rows."""
    from tasks.ml.statistics import bootstrap, discordance

    confidence, limit = budget.confidence, budget.max_quality_drop
    interval = bootstrap.accuracy_difference(teacher, shipped, confidence=confidence)
    counts = discordance.count(teacher, shipped)
    near, far = limit - abs(limit), limit + abs(limit)
    status = decide(interval, limit, "at_most", band=(near, far))
    measured = interval.measured
    moved = f"fell by {100 * measured:.2f}" if measured >= 0 else f"rose by {-100 * measured:.2f}"
    explanation = (
        f"accuracy {moved} points on {counts.n} paired test rows ({100 * confidence:g} % interval of the loss "
        f"{_points(interval.low)} to {_points(interval.high)}); at most {100 * limit:g} may be lost"
    )
    needed = None
    if status is CheckStatus.UNDECIDABLE:
        rule_out = far if measured <= limit else near
        needed = discordance.rows_needed(*counts, rule_out=rule_out, confidence=confidence)
        explanation += f"; undecidable at this n: {_needed(needed)} to rule out a loss of {100 * rule_out:g}"
    parting = Parting(
        lost=counts.lost,
        gained=counts.gained,
        mcnemar_p=discordance.mcnemar(counts.lost, counts.gained),
        margin=limit,
        noninferiority_p=discordance.noninferiority(*counts, margin=limit),
        confidence=confidence,
        largest_drop=discordance.largest_drop(*counts, confidence=confidence),
        rows_needed=needed,
    )
    return _check("quality_drop", interval, limit, "at_most", counts.n, status, explanation, parting)


def _needed(rows: int | None) -> str:
    return "no number of rows is enough" if rows is None else f"at least {rows:,} rows are needed"


def _shrink(teacher: dict[str, Any], shipped: dict[str, Any], budget: BudgetConfig) -> Check:
    from tasks.ml.statistics.bootstrap import Interval

    ratio = teacher["size_mb"] / shipped["size_mb"]
    interval, limit = Interval(ratio, ratio, ratio), budget.min_shrink
    status = decide(interval, limit, "at_least", band=(limit / 2, limit * 2))
    explanation = (
        f"weights went from {teacher['size_mb']:.2f} to {shipped['size_mb']:.2f} MB, {ratio:.2f} times smaller; "
        f"at least {limit:g} times is wanted"
    )
    return _check("shrink", interval, limit, "at_least", 2, status, explanation)


def _speedup(teacher: dict[str, Any], shipped: dict[str, Any], budget: BudgetConfig) -> Check:
    from tasks.ml.statistics import bootstrap

    slow, fast = teacher["latency_p50_rounds_ms"], shipped["latency_p50_rounds_ms"]
    interval, limit = bootstrap.ratio_of_medians(slow, fast, confidence=budget.confidence), budget.min_speedup
    status = decide(interval, limit, "at_least", band=(limit / 2, limit * 2))
    explanation = (
        f"p50 latency of one sentence is {interval.measured:.2f} times lower ({100 * budget.confidence:g} % interval "
        f"{interval.low:.2f} to {interval.high:.2f} over {len(fast)} rounds); at least {limit:g} times is wanted"
    )
    if status is CheckStatus.UNDECIDABLE:
        explanation += "; the timings spread too far, use a quieter machine or more repeats"
    return _check("speedup", interval, limit, "at_least", len(fast), status, explanation)


def _points(fraction: float) -> str:
    """A fraction in points, with the sign that typography has for it."""
    return f"{100 * fraction:.2f}".replace("-", "−")


def _check(
    name: str,
    interval: Interval,
    limit: float,
    direction: Direction,
    n: int,
    status: CheckStatus,
    explanation: str,
    parting: Parting | None = None,
) -> Check:
    return Check(
        name=name,
        **interval._asdict(),
        limit=limit,
        direction=direction,
        n=n,
        status=status,
        explanation=explanation,
        parting=parting,
    )


def weigh(evidence: Path, budget: BudgetConfig) -> Verdict:
    """Compares the shipped model with its teacher, from the files that ``validate`` left. Pure."""
    import pyarrow as pa

    from tasks.ml.quality import classwise

    document = json.loads((evidence / "validation.json").read_text(encoding="utf-8"))
    teacher = next(model for model in document["models"] if model["stage"] == "train")
    shipped = next(model for model in document["models"] if model["stage"] == "validate")
    rows = pa.ipc.open_file(evidence / "rows.arrow").read_all()
    correct = {stage: rows[f"correct_{stage}"].to_numpy() for stage in ("train", "validate")}
    answers = {stage: rows[f"prediction_{stage}"].to_numpy() for stage in ("train", "validate")}
    targets, about, confidence = rows["target"].to_numpy(), document["classes"], budget.confidence
    fates = classwise.fates(answers["train"], answers["validate"], targets, len(about["labels"]), confidence=confidence)
    checks = [_quality_drop(correct["train"], correct["validate"], budget)]
    if budget.floor is Floor.MAJORITY:
        counts = classwise.tally(answers["validate"], targets, len(about["labels"]))
        checks += [
            classes.lost(fates, about["labels"], max_drop=budget.max_quality_drop, confidence=confidence),
            classes.floor(counts, about, who="the shipped model", split="test", confidence=confidence),
        ]
    checks += [_shrink(teacher, shipped, budget), _speedup(teacher, shipped, budget)]
    return Verdict(checks=tuple(checks), recalls=classes.recalls(fates, about["labels"]))


@step(name="floor")
def floor(teacher: Digest, budget: BudgetConfig, *, run_id: str) -> Verdict | None:
    """Weighs the teacher, from what ``train`` left, before anything is made of it.

    Returns:
        The verdict that the run ends with; ``None`` if it goes on.
    """
    from tasks.ml.quality.classwise import Tally

    if budget.floor is Floor.NONE:
        return None
    about = json.loads((store.path(teacher) / "classes.json").read_text(encoding="utf-8"))

    counts, level = Tally.from_json(about["answers"]), budget.confidence
    check = classes.floor(counts, about, who="the teacher", split="selection", confidence=level)
    if check.status is CheckStatus.PASSED:
        logger.info("floor: %s", check.explanation)
        return None
    if not classes.is_decidable(counts, about, confidence=level):
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

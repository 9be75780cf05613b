"""The outcome in short: metrics that compare over many runs, and the text and tables of the run page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks.contracts.values import Outcome
from tasks.reporting import measures, numbers
from tasks.reporting.evidence import Evidence, balanced_accuracy, models, over_seeds
from tasks.reporting.markdown import table, text
from tasks.reporting.verdict import headline, limit, reading, tests

FINAL = (
    "quality",
    "agreement_with_teacher",
    "size_mb",
    "num_parameters",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "throughput_per_s",
)
BY_MODEL = ("quality", "agreement_with_teacher", "size_mb", "num_parameters", "latency_p50_ms")


def _measured(row: dict[str, Any], names: Sequence[str], prefix: str) -> dict[str, float]:
    called = {"quality": row["metric"]} if "quality" in names else {}
    return {f"{prefix}{called.get(name, name)}": float(row[name]) for name in names if row.get(name) is not None}


def final_metrics(outcome: Outcome, evidence: Evidence) -> dict[str, float]:
    """Returns ``teacher_…`` and ``shipped_…`` numbers and the parity, under names that never change."""
    rows = models(outcome, evidence)
    found: dict[str, float] = {}
    for prefix, stage in (("teacher_", "train"), ("shipped_", "validate")):
        for row in rows:
            if row["stage"] == stage:
                found |= _measured(row, FINAL, prefix)
    if evidence.validation:
        found |= _measured(evidence.validation["parity"], ("label_flips", "max_abs_error"), "parity_")
    if outcome.verdict.recalls:
        teacher, shipped = balanced_accuracy(outcome.verdict.recalls)
        found |= {"teacher_balanced_accuracy": teacher, "shipped_balanced_accuracy": shipped}
    if evidence.seeds:
        names = ("quality_drop_over_seeds", "quality_drop_over_seeds_low", "quality_drop_over_seeds_high")
        found |= dict(zip(names, over_seeds(evidence.seeds), strict=True)) | {"seeds": float(len(evidence.seeds))}
    found["computed_seconds"] = sum(result.seconds for result in outcome.stages if not result.cached)
    return found


def metrics_by_model(outcome: Outcome, evidence: Evidence) -> list[dict[str, float]]:
    """Returns the waterfall as metrics, one mapping per model of the lineage: its index is the step in MLflow."""
    return [_measured(row, BY_MODEL, "waterfall/") for row in models(outcome, evidence)]


def markdown(outcome: Outcome, evidence: Evidence, *, url: str) -> str:
    """Returns the verdict, its checks and the models as Markdown."""
    verdict = outcome.verdict
    checks = []
    for check in verdict.checks:
        name, form, _ = reading(check)
        checks.append([name, form(check.measured), limit(check), str(check.status), check.explanation])
    cells, rows = [], models(outcome, evidence)
    measure = measures.of(rows[0]["metric"] if rows else "quality")
    for row in rows:
        size = numbers.known(row["size_mb"], lambda value: numbers.unit(value, "MB"))
        latency = numbers.known(row["latency_p50_ms"], lambda value: numbers.unit(value, "ms"))
        cells.append([row["title"], numbers.known(row["quality"], measure.value), size, latency])
    parts = [
        f"# {verdict.status.capitalize()}: {outcome.recipe}",
        text(headline(verdict.checks)),
        table(["check", "measured", "limit", "status", "why"], checks),
        *("\n".join(f"- {text(sentence)}" for sentence in tests(check)) for check in verdict.checks if check.parting),
        table(["model", measure.name, "size", "latency p50"], cells),
    ]
    if outcome.release:
        parts.append(f"Registered as **{outcome.release.name}** version {outcome.release.version}.")
    if url:
        parts.append(f"In MLflow: [the full report]({url}/artifacts/report.html), [the run]({url}).")
    return "\n\n".join(parts) + "\n"


def stage_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Returns one row per stage for a table artifact."""
    return [
        {
            "stage": result.stage,
            "status": "Cached" if result.cached else "computed",
            "seconds": result.seconds,
            "metric": result.scorecard.metric,
            **{name: getattr(result.scorecard, name) for name in BY_MODEL},
            "split": result.scorecard.split,
            "mlflow_run": result.run_id,
        }
        for result in outcome.stages
    ]

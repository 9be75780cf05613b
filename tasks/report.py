"""report: what a run came to, as a page to send to a colleague, as MLflow metrics and figures, as Prefect artifacts."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks.contracts.values import Outcome
from tasks.engine import disk, store, tracking
from tasks.engine.keys import numerics_versions
from tasks.engine.step import step
from tasks.reporting import page, summary
from tasks.reporting.evidence import Evidence, SeedRun, compare, named, scores

logger = logging.getLogger("featherweight")

DOCUMENTS = ("history", "operators", "validation", "profile", "sensitivity", "regressions")
"""JSON files that stages leave in their evidence or beside the rows."""


def documents(outcome: Outcome) -> dict[tuple[str, str], dict[str, Any]]:
    """Reads the JSON documents of all stages from the store, by stage and name; a stage leaves none, one or several."""
    found = {}
    for result in outcome.stages:
        digests = (result.evidence, result.splits.digest if result.splits else "")
        for directory in (store.path(digest) for digest in digests if digest):
            for name in DOCUMENTS:
                if (directory / f"{name}.json").is_file():
                    found[result.stage, name] = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _rows(outcome: Outcome) -> Path | None:
    """Where ``validate`` left what became of each row."""
    paths = (store.path(result.evidence) / "rows.arrow" for result in outcome.stages if result.evidence)
    return next((path for path in paths if path.is_file()), None)


def gather(outcome: Outcome) -> Evidence:
    """Reads everything that the report shows beyond the outcome itself."""
    found, rows = documents(outcome), _rows(outcome)
    by_name: dict[str, Any] = {name: document for (_, name), document in found.items() if name != "history"}
    models = by_name.get("validation", {}).get("models") or [{}]
    metric = named(models[0])["metric"]
    return Evidence(
        histories={
            stage: {**document, "evaluations": [named(point) for point in document["evaluations"]]}
            for (stage, name), document in found.items()
            if name == "history"
        },
        comparisons=compare(rows, metric=metric) if rows else {},
        **by_name,
    )


def _dataset(outcome: Outcome) -> str:
    return next((result.splits.digest for result in outcome.stages if result.splits), "")


def seeds(outcome: Outcome, recipe: dict[str, Any]) -> tuple[SeedRun, ...]:
    """Finds the newest run of each seed whose recipe and rows are otherwise these; empty if there is only this one.

    What MLflow or the store no longer has is left out.
    """
    params = tracking.flatten(recipe)
    mine = params.pop("seed", "")
    found: dict[int, SeedRun] = {}
    for run in tracking.find_runs("tags.`featherweight.kind` = 'pipeline'", names=[outcome.recipe], max_results=1000):
        theirs = dict(run.data.params)
        seed = theirs.pop("seed", "")
        if theirs != params or (seed == mine and run.info.run_id != outcome.run_id):
            continue
        try:
            if int(seed) in found:
                continue
            text = tracking.read_text(run.info.run_id, "outcome.json")
            other = Outcome.model_validate_json(text) if text else None
            if other is None or _dataset(other) != _dataset(outcome) or (rows := _rows(other)) is None:
                continue
            found_scores = scores(rows)
        except (ValueError, KeyError) as error:
            logger.warning("run %s is left out of the seeds: %s", run.info.run_id, error)
            continue
        date = datetime.fromtimestamp(run.info.start_time / 1000, UTC).date().isoformat()
        found[int(seed)] = SeedRun(int(seed), run.info.run_id, date, found_scores["train"], found_scores["validate"])
    return tuple(found[seed] for seed in sorted(found)) if len(found) > 1 else ()


def versions() -> dict[str, str]:
    """Returns the versions of Python and of every library that the result or its record depends on."""
    ours = {name: importlib.metadata.version(name) for name in ("featherweight", "mlflow", "prefect")}
    return {"python": platform.python_version(), **ours, **numerics_versions()}


@step(name="report")
def report(outcome: Outcome, recipe: dict[str, Any], *, run_id: str) -> Path:
    """Writes the report page and returns its path; logs it, its figures and its numbers to the parent run."""
    run = tracking.Run(run_id)
    run.text(outcome.model_dump_json(indent=1), "outcome.json")
    evidence = replace(gather(outcome), seeds=seeds(outcome, recipe))
    url = run.url()
    surroundings = page.Surroundings(date=datetime.now().astimezone(), versions=versions(), run_url=url)
    pages = page.render(outcome, recipe, evidence, surroundings)
    path = disk.home() / "reports" / f"{run_id}.html"
    disk.write_atomically(path, pages["report.html"])

    for name, content in pages.items():
        run.text(content, name)
    run.metrics(summary.final_metrics(outcome, evidence))
    run.describe(summary.markdown(outcome, evidence, url=""))
    for number, metrics in enumerate(summary.metrics_by_model(outcome, evidence)):
        run.metrics(metrics, step=number)

    slug = re.sub(r"[^a-z0-9]+", "-", outcome.recipe.lower()).strip("-")
    create_markdown_artifact(
        summary.markdown(outcome, evidence, url=url), key=f"{slug}-verdict", description=outcome.verdict.reason
    )
    create_table_artifact(summary.stage_rows(outcome), key=f"{slug}-stages", description="What each stage gave")
    return path

"""report: what a run came to, as a page to send to a colleague, as MLflow metrics and figures, as Prefect artifacts."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks import disk, store, tracking
from tasks.contracts import Outcome
from tasks.reporting import page, summary
from tasks.reporting.evidence import Evidence
from tasks.stage import numerics_versions

DOCUMENTS = ("history", "operators", "validation", "profile")
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


def gather(outcome: Outcome) -> Evidence:
    """Reads everything that the report shows beyond the outcome itself."""
    found = documents(outcome)
    by_name = {name: document for (_, name), document in found.items() if name != "history"}
    return Evidence(
        histories={stage: document for (stage, name), document in found.items() if name == "history"}, **by_name
    )


def versions() -> dict[str, str]:
    """Returns the versions of Python and of every library that the result or its record depends on."""
    ours = {name: importlib.metadata.version(name) for name in ("featherweight", "mlflow", "prefect")}
    return {"python": platform.python_version(), **ours, **numerics_versions()}


@task(name="report", persist_result=False)
def report(outcome: Outcome, recipe: dict[str, Any], *, run_id: str) -> Path:
    """Writes the report page and returns its path; logs it, its figures and its numbers to the parent run."""
    evidence = gather(outcome)
    url = tracking.Run(run_id).url()
    surroundings = page.Surroundings(date=datetime.now().astimezone(), versions=versions(), run_url=url)
    pages = page.render(outcome, recipe, evidence, surroundings)
    path = disk.home() / "reports" / f"{run_id}.html"
    disk.write_atomically(path, pages["report.html"])

    run = tracking.Run(run_id)
    for name, content in {**pages, "outcome.json": outcome.model_dump_json(indent=1)}.items():
        run.text(content, name)
    run.metrics(summary.final_metrics(outcome, evidence))
    run.describe(summary.markdown(outcome, evidence, url=""))
    for step, metrics in enumerate(summary.metrics_by_model(outcome, evidence)):
        run.metrics(metrics, step=step)

    slug = re.sub(r"[^a-z0-9]+", "-", outcome.recipe.lower()).strip("-")
    create_markdown_artifact(
        summary.markdown(outcome, evidence, url=url), key=f"{slug}-verdict", description=outcome.verdict.reason
    )
    create_table_artifact(summary.stage_rows(outcome), key=f"{slug}-stages", description="What each stage gave")
    return path

"""Links into the two UIs: from an MLflow run to the Prefect run that made it, and back, and to all runs."""

from __future__ import annotations

import json
from urllib.parse import quote

from prefect.artifacts import create_link_artifact
from prefect.runtime import flow_run
from prefect.settings import get_current_settings

from tasks.engine import tracking


def flow_run_url() -> str:
    """Returns the address of this flow run in the Prefect UI, or nothing where there is no UI."""
    return (flow_run.ui_url or "") if get_current_settings().server.ui.enabled else ""


def show_run(run_id: str) -> None:
    """Links the MLflow run on the page of this flow run, if a server shows it."""
    if url := tracking.Run(run_id).url():
        create_link_artifact(
            url,
            key="mlflow-run",
            link_text="Curves, figures and the report in MLflow",
            description=f"[Curves, figures and the report in MLflow]({url})",
        )


VIEW = "workflowType=machine_learning"
"""MLflow's view of trained models; by itself it opens on that of prompts and traces."""
MOST_EXPERIMENTS = 50


def runs(server: str) -> str:
    """Returns the page of an MLflow server with the runs of all recipes, or where they will be.

    It is not the page that the server opens on, which says that usage data is collected whether or not it is.
    """
    found = tracking.client().search_experiments(max_results=MOST_EXPERIMENTS)
    ids = [one.experiment_id for one in found if one.name != "Default"]
    if not ids:
        return f"{server}/#/experiments?{VIEW}"
    if len(ids) == 1:
        return f"{server}/#/experiments/{ids[0]}/runs?{VIEW}"
    return f"{server}/#/compare-experiments/s?experiments={quote(json.dumps(ids))}&{VIEW}"

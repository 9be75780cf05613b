"""Links between the two UIs: from an MLflow run to the Prefect run that made it, and back."""

from __future__ import annotations

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

"""Runs that are triggered over the API of running servers, and what MLflow recorded of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient


def until(condition: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(1)
    return found


def trigger(client: SyncPrefectClient, recipe: Mapping[str, Any], **changes: Any) -> Any:
    """Triggers a deployment as the form does: with a whole recipe, here with some fields changed."""
    deployment = client.read_deployment_by_name("compress/compress-smoke")
    merged = {**recipe, **{k: {**recipe[k], **v} if isinstance(v, dict) else v for k, v in changes.items()}}
    return client.create_flow_run_from_deployment(deployment.id, parameters={"recipe": merged})


def finished(client: SyncPrefectClient, run: Any, seconds: float = 400) -> Any:
    def final() -> Any:
        found = client.read_flow_run(run.id)
        return found if found.state and found.state.is_final() else None

    return until(final, seconds)


def recorded(tracking: str, kind: str = "pipeline") -> list[Any]:
    """The runs of a kind on an MLflow server."""
    client = MlflowClient(tracking, tracking)
    experiments = [one.experiment_id for one in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.`featherweight.kind` = '{kind}'", max_results=1000))

"""Deployments: what ``infra/prefect.yaml`` describes, registered with a Prefect server as often as one likes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml

from tasks.contracts.base import FeatherweightError

ROOT = Path(__file__).parents[2]
FILE = ROOT / "infra" / "prefect.yaml"
POOL = "featherweight"
TEMPLATE = ROOT / "infra" / "work-pool.json"
"""What a run may choose of the process that executes it: nothing. Prefect's own template lets it choose a command,
environment variables and a directory, each of which starts any program."""


def described() -> list[dict[str, Any]]:
    """Reads the deployments of the file."""
    found: list[dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["deployments"]
    return found


def register(*, limit: int) -> list[str]:
    """Creates or updates the work pool and all deployments; what a person scheduled stays as it is.

    Returns:
        the deployments, as FLOW/NAME.

    Raises:
        FeatherweightError: Prefect refused one.
    """
    _ensure_pool(limit)
    with _client() as client:
        before = _schedules(client)
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(FILE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise FeatherweightError(f"prefect deploy failed: {' '.join((done.stdout + done.stderr).split())[-1000:]}")
    with _client() as client:
        _restore(client, before)
    return sorted(f"{one['entrypoint'].rpartition('.')[2]}/{one['name']}" for one in described())


def _client() -> Any:
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def _ensure_pool(limit: int) -> None:
    """Creates the pool of this machine's processes, or sets its limit and template."""
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    template = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    settings: dict[str, Any] = {"base_job_template": template, "concurrency_limit": limit}
    with _client() as client:
        try:
            client.update_work_pool(POOL, WorkPoolUpdate(**settings))
        except ObjectNotFound:
            about = "Compression runs as processes of the worker's machine."
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", description=about, **settings))


def _schedules(client: Any) -> dict[UUID, list[Any]]:
    """The schedules of the file's deployments that the server knows, by deployment."""
    from prefect.client.schemas.filters import DeploymentFilter

    names = {"name": {"any_": [one["name"] for one in described()]}}
    found = client.read_deployments(deployment_filter=DeploymentFilter.model_validate(names))
    return {one.id: list(one.schedules) for one in found}


def _restore(client: Any, before: Mapping[UUID, Sequence[Any]]) -> None:
    """Gives the file's schedules the state and parameters they had, and makes those again that people added.

    Theirs have no slug, and Prefect drops all schedules of a deployment that is registered anew if one has none.
    """
    from prefect.client.schemas.actions import DeploymentScheduleCreate

    for deployment, there in _schedules(client).items():
        known = before.get(deployment, ())
        kept = {one.slug: one for one in known if one.slug}
        for one in there:
            was = kept.get(one.slug)
            if was and (was.active, was.parameters) != (one.active, one.parameters):
                client.update_deployment_schedule(deployment, one.id, active=was.active, parameters=was.parameters)
        present = {one.id for one in there}
        lost = [
            DeploymentScheduleCreate(
                schedule=one.schedule,
                active=one.active,
                parameters=one.parameters,
                max_scheduled_runs=one.max_scheduled_runs,
            )
            for one in known
            if not one.slug and one.id not in present
        ]
        if lost:
            client.create_deployment_schedules(deployment, lost)


def worker_is_online(name: str) -> bool:
    """Whether the pool has heard from a worker of this name."""
    import httpx

    with _client() as client:
        try:
            workers = client.read_workers_for_work_pool(POOL)
        except httpx.HTTPError:
            return False
    return any(worker.name == name and worker.status == "ONLINE" for worker in workers)

"""``infra/prefect.yaml``: every deployment leads to a flow, starts from a whole recipe, and leaves its schedule off."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
from prefect import Flow
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule

from flows.command import recipe_files
from flows.recipe import Recipe
from flows.servers import deployments

ALL = deployments.described()
COMPRESS = [one for one in ALL if one["entrypoint"] == "flows.compress.compress"]


def named(one: dict[str, Any]) -> str:
    return str(one["name"])


@pytest.mark.parametrize("one", ALL, ids=named)
def test_every_entrypoint_is_a_flow(one: dict[str, Any]) -> None:
    module, _, name = one["entrypoint"].rpartition(".")
    assert isinstance(getattr(import_module(module), name), Flow)
    assert one["work_pool"] == {"name": deployments.POOL}
    assert one["description"].endswith(".")
    assert "featherweight" in one["tags"]


@pytest.mark.parametrize("one", COMPRESS, ids=named)
def test_a_ready_recipe_is_deployed_with_all_its_fields(one: dict[str, Any]) -> None:
    recipe = recipe_files.load(one["name"].removeprefix("compress-"))
    assert one["parameters"] == {"recipe": recipe.model_dump(mode="json")}
    assert Recipe.model_validate(one["parameters"]["recipe"]) == recipe


def test_every_ready_recipe_is_deployed() -> None:
    assert [one["name"] for one in COMPRESS] == [f"compress-{name}" for name in recipe_files.ready_names()]


@pytest.mark.parametrize("one", COMPRESS, ids=named)
def test_the_nightly_schedule_is_off_and_knows_its_time_zone(one: dict[str, Any]) -> None:
    (schedule,) = one["schedules"]
    assert schedule["active"] is False
    cron = CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    DeploymentScheduleCreate(schedule=cron, active=schedule["active"], slug=schedule["slug"])
    assert one["concurrency_limit"]["collision_strategy"] == "ENQUEUE", "a stuck run must not cancel every night's"

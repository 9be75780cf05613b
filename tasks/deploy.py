"""deploy: tries the registered model in a clean process, then moves the alias, unless a person decided otherwise."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from tasks.contracts.base import StageConfig
from tasks.contracts.values import Release
from tasks.engine import registry, tracking
from tasks.engine.step import step


class DeploymentConfig(StageConfig):
    """Where a passed model goes."""

    alias: str = Field(registry.CHAMPION, title="Alias", pattern=r"^[a-z][a-z0-9_-]{0,62}$")
    """Registry alias that is moved to the model once it passed."""

    @field_validator("alias")
    @classmethod
    def _may_be_moved(cls, alias: str) -> str:
        if alias == "latest" or re.fullmatch(r"v[0-9]+", alias):
            raise ValueError(f"{alias!r} is a name that MLflow keeps for itself; choose another, such as champion")
        if alias == registry.PREVIOUS:
            raise ValueError(f"{alias!r} is the champion before the present one; choose another, such as champion")
        return alias


@step(name="deploy")
def deploy(release: Release, config: DeploymentConfig, *, run_id: str) -> Release:
    """Reloads a new version from the registry, tries its golden rows in a clean process, and moves the alias last."""
    registry.require_passed(registry.find(release.name, release.version), config.alias)
    if registry.advance(config.alias, release):
        tracking.Run(run_id).tags({"featherweight.deployed": f"{release.name}@{config.alias}"})
    return release

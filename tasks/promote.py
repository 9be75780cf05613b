"""promote: moves the champion to another version, or back to the one before it, because a person says so."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact

from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Release
from tasks.engine import registry
from tasks.engine.step import step
from tasks.reporting import markdown


@step(name="promote")
def promote(name: str, which: str | int, *, reason: str) -> Release:
    """Makes a version the champion, once it has answered its golden rows.

    Args:
        which: an alias or a version.
        reason: needed for a version whose verdict is not passed.
    """
    version = registry.find(name, which)
    registry.require_passed(version, registry.CHAMPION, reason=reason)
    release = registry.release(version)
    registry.move(registry.CHAMPION, release)
    _tell(release, reason)
    return release


@step(name="rollback")
def rollback(name: str, *, reason: str) -> Release:
    """Makes the champion before this one the champion again; what it replaces becomes the previous one."""
    if registry.PREVIOUS not in registry.aliases(name):
        raise FeatherweightError(f"{name} has no {registry.PREVIOUS} champion to go back to")
    return promote.fn(name, registry.PREVIOUS, reason=reason)


def _tell(release: Release, reason: str) -> None:
    lines = [f"- {alias}: version {version}" for alias, version in sorted(registry.aliases(release.name).items())]
    because = f"\n\nReason: {markdown.text(reason)}" if reason else ""
    create_markdown_artifact(
        f"# {release.name}\n\n" + "\n".join(lines) + because,
        key="aliases",
        description=f"{release.name}@{registry.CHAMPION} is version {release.version}",
    )

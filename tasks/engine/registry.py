"""Model versions and the aliases that people and servers know them by: resolved, tried, and moved.

``candidate`` is the newest version that passed, ``champion`` the one that is served, ``previous`` the champion before.

MLflow writes one alias at a time, and a process may die between two of them. So what is about to become champion, and
instead of what, is written down first, and whoever reads the aliases reads that, too. Who writes holds a lock, which
holds off all processes of this home; between machines that share no disk, what is left is the time of two requests.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Release
from tasks.engine import disk, store, tracking

logger = logging.getLogger("featherweight")

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"

DIGEST_TAG = "featherweight.digest"
VERDICT_TAG = "featherweight.verdict"
SELF_TEST_TAG = "featherweight.self_test"
OVERRIDE_TAG = "featherweight.override_reason"
"""Why a person moved an alias to a version whose verdict is not passed."""
MOVING_TAG = "featherweight.moving"
"""Of a registered model: the champion that is being replaced, and the version that replaces it."""
SETTLED_TAG = "featherweight.settled."
"""Of a registered model, followed by an alias: the newest version that there was when it was last decided which version
the alias names. A run moves it to newer ones only."""

MOST_VERSIONS = 200_000
"""Versions of a model that MLflow gives at once."""
SELF_TEST_TIMEOUT_S = 300
CLEAN_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


def aliases(name: str) -> dict[str, int]:
    """Returns the versions of a registered model by alias.

    Raises:
        FeatherweightError: no model of this name is registered.
    """
    model = _model(name)
    found = {alias: int(version) for alias, version in model.aliases.items()}
    replaced, _, champion = model.tags.get(MOVING_TAG, "").partition(" ")
    if replaced.isdecimal() and champion == str(found.get(CHAMPION)):
        found[PREVIOUS] = int(replaced)  # whoever moved the champion died before it could say so
    return found


def _model(name: str) -> RegisteredModel:
    try:
        return tracking.client().get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        known = sorted(model.name for model in tracking.client().search_registered_models())
        raise FeatherweightError(
            f"no model {name!r} is registered; {'there are ' + ', '.join(known) if known else 'none is yet'}"
        ) from None


NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow answers about names and versions that do not exist, or cannot."""


def find(name: str, which: str | int) -> ModelVersion:
    """Finds a version by its number or by an alias.

    Raises:
        FeatherweightError: there is no such model, alias or version.
    """
    known = aliases(name)
    if isinstance(which, str) and not (which.isascii() and which.isdigit()):
        if which not in known:
            named = ", ".join(f"{alias} (version {version})" for alias, version in sorted(known.items())) or "none"
            raise FeatherweightError(f"{name} has no alias {which!r}; it has {named}")
        which = known[which]
    found = versions(name)
    for version in found:
        if str(version.version) == str(which).lstrip("0"):
            return version
    numbers = ", ".join(str(version.version) for version in found) or "none"
    raise FeatherweightError(f"{name} has no version {which}; it has {numbers}")


def versions(name: str) -> list[ModelVersion]:
    """All versions of a registered model, the first one first."""
    found = tracking.client().search_model_versions(f"name = '{name}'", max_results=MOST_VERSIONS)
    return sorted(found, key=lambda version: int(version.version))


def release(version: ModelVersion) -> Release:
    """Describes a version that Featherweight registered.

    Raises:
        FeatherweightError: something else registered it.
    """
    try:
        return Release(
            name=version.name,
            version=int(version.version),
            digest=version.tags.get(DIGEST_TAG, ""),
            model_uri=f"models:/{version.name}/{version.version}",
        )
    except ValidationError:
        raise FeatherweightError(
            f"{version.name} version {version.version} was not registered by Featherweight"
        ) from None


def require_passed(version: ModelVersion, alias: str, *, reason: str = "") -> None:
    """Refuses a version that has no passed verdict, unless a person gives a reason, which is kept with the version.

    Raises:
        FeatherweightError: it has none, and no reason was given.
    """
    verdict = version.tags.get(VERDICT_TAG, "none")
    if verdict == "passed":
        return
    if not reason.strip():
        raise FeatherweightError(
            f"{version.name} version {version.version} has no passed verdict ({verdict}); {alias} stays where it is. "
            "Give a reason to move it nevertheless"
        )
    tracking.client().set_model_version_tag(version.name, version.version, OVERRIDE_TAG, reason.strip())


@contextlib.contextmanager
def downloaded(release: Release) -> Iterator[Path]:
    """Yields the serving bundle of a version, fetched from the registry and known to be the one meant.

    What lies around it in the registry, code that MLflow would execute included, vouches for nothing and is left out.

    Raises:
        RuntimeError: what the registry gave is not the bundle that was registered.
    """
    import mlflow.artifacts

    with store.workspace() as folder:
        tracking.client()  # sets the registry that the URI is looked up in
        model = Path(mlflow.artifacts.download_artifacts(artifact_uri=release.model_uri, dst_path=str(folder)))
        bundle = model / "artifacts" / release.digest
        if wrong := _damage(bundle):
            raise RuntimeError(f"{release.model_uri} in the registry is not bundle {release.digest[:12]}: {wrong}")
        yield bundle


def _damage(bundle: Path) -> str:
    """What is wrong with a directory whose name is its digest; empty if it is whole."""
    try:
        store.verify(bundle)
    except store.CorruptObjectError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def servable(bundle: Path) -> Iterator[Path]:
    """Yields an MLflow model that answers from a downloaded bundle by the code of this installation."""
    from tasks.serving import model

    with store.workspace() as folder:
        yield model.installed(bundle, store.listing(bundle), folder)


def self_test(bundle: Path, release: Release) -> dict[str, float]:
    """Lets a downloaded bundle answer its golden rows in a clean process, by the predictor of this installation.

    The bundle's own is not executed: a tag of the registry that it came from is all that speaks for it. That the
    installed one answers as it did is what the golden rows say.

    Raises:
        RuntimeError: it does not answer as it did when it was built.
    """
    from tasks.serving import model

    done = subprocess.run(
        [sys.executable, "-I", "-B", str(model.PREDICTOR), "--self-test", str(bundle)],
        env={name: os.environ[name] for name in CLEAN_ENVIRONMENT if name in os.environ},
        capture_output=True,
        text=True,
        timeout=SELF_TEST_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"self-test of {release.model_uri} failed: {done.stderr.strip()}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])  # after what providers print
    logger.info("%s answered %s golden rows", release.model_uri, result["golden_rows"])
    return result


def move(alias: str, release: Release) -> None:
    """Moves an alias to a version because a person says so, once the version has answered from the registry.

    What is decided here holds for all versions that there are now: no run moves the alias to one of them.

    Raises:
        RuntimeError: the version is damaged or does not answer as it should; the alias stays where it is.
    """
    _require_answers(alias, release)
    with _deciding(release.name):
        newest = max(int(version.version) for version in versions(release.name))
        _settle(alias, release.name, newest)
        _write(alias, release)


def advance(alias: str, release: Release) -> bool:
    """Moves an alias to what a run has made, once it has answered from the registry; says whether it is there now.

    A version that there was already when the alias was last moved, by a person or by a newer run, is nothing new: what
    was decided then stands.

    Raises:
        RuntimeError: the version is damaged or does not answer as it should; the alias stays where it is.
    """
    if not _is_new(alias, release):
        return aliases(release.name).get(alias) == release.version
    _require_answers(alias, release)
    with _deciding(release.name):
        if not _is_new(alias, release):
            return False
        _write(alias, release)
        _settle(alias, release.name, release.version)
    return True


def nominate(alias: str, release: Release) -> None:
    """Lets an alias that nothing is served by name a version, if that is newer than what it names."""
    with _deciding(release.name):
        if aliases(release.name).get(alias, 0) < release.version:
            tracking.client().set_registered_model_alias(release.name, alias, str(release.version))


def _deciding(name: str) -> contextlib.AbstractContextManager[None]:
    return disk.lock(f"aliases-{hashlib.sha256(name.encode()).hexdigest()[:16]}")


def _is_new(alias: str, release: Release) -> bool:
    """Whether a version came after the alias was last decided."""
    said = _model(release.name).tags.get(SETTLED_TAG + alias, "")
    current = aliases(release.name).get(alias, 0)
    if release.version > max(current, int(said) if said.isdecimal() else 0):
        return True
    if current == release.version:
        logger.info("%s@%s already is version %s", release.name, alias, release.version)
    else:
        stays = f"stays version {current}" if current else "names no version"
        logger.warning(
            "%s@%s %s: version %s is not new, and this was decided after it; to change that: featherweight promote %s "
            "--version %s", release.name, alias, stays, release.version, release.name, release.version,
        )  # fmt: skip
    return False


def _require_answers(alias: str, release: Release) -> None:
    """Tries a version from the registry, unless it answered before the alias named it."""
    client = tracking.client()
    version = client.get_model_version(release.name, str(release.version))
    if version.tags.get(SELF_TEST_TAG) == release.digest and aliases(release.name).get(alias) == release.version:
        return
    with downloaded(release) as bundle:
        self_test(bundle, release)
    client.set_model_version_tag(release.name, str(release.version), SELF_TEST_TAG, release.digest)


def _settle(alias: str, name: str, newest: int) -> None:
    tracking.client().set_registered_model_tag(name, SETTLED_TAG + alias, str(newest))


def _write(alias: str, release: Release) -> None:
    """Writes an alias; the champion it replaces becomes previous."""
    client, name, version = tracking.client(), release.name, str(release.version)
    before = aliases(name)
    replaced = before.get(alias)
    changes_champion = alias == CHAMPION and replaced not in (None, release.version)
    if changes_champion:
        client.set_registered_model_tag(name, MOVING_TAG, f"{replaced} {version}")
    if replaced != release.version:
        client.set_registered_model_alias(name, alias, version)
    if changes_champion:
        client.set_registered_model_alias(name, PREVIOUS, str(replaced))
        client.delete_registered_model_tag(name, MOVING_TAG)
    logger.info("%s@%s is now version %s", name, alias, version)

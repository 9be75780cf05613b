"""Model versions and the aliases that people and servers know them by: resolved, tried, and moved.

``candidate`` is the newest version that passed, ``champion`` the one that is served, ``previous`` the champion before.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from tasks import store, tracking
from tasks.contracts import FeatherweightError, Release

logger = logging.getLogger("featherweight")

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"

DIGEST_TAG = "featherweight.digest"
VERDICT_TAG = "featherweight.verdict"
SELF_TEST_TAG = "featherweight.self_test"
OVERRIDE_TAG = "featherweight.override_reason"
"""Why a person moved an alias to a version whose verdict is not passed."""

SELF_TEST_TIMEOUT_S = 300
CLEAN_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


def aliases(name: str) -> dict[str, int]:
    """Returns the versions of a registered model by alias.

    Raises:
        FeatherweightError: no model of this name is registered.
    """
    try:
        found = tracking.client().get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = sorted(model.name for model in tracking.client().search_registered_models())
        raise FeatherweightError(
            f"no model {name!r} is registered; {'there are ' + ', '.join(known) if known else 'none is yet'}"
        ) from None
    return {alias: int(version) for alias, version in found.items()}


def find(name: str, which: str | int) -> ModelVersion:
    """Finds a version by its number or by an alias.

    Raises:
        FeatherweightError: there is no such model, alias or version.
    """
    known = aliases(name)
    if isinstance(which, str) and not which.isdigit():
        if which not in known:
            named = ", ".join(f"{alias} (version {version})" for alias, version in sorted(known.items())) or "none"
            raise FeatherweightError(f"{name} has no alias {which!r}; it has {named}")
        which = known[which]
    try:
        return tracking.client().get_model_version(name, str(which))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        versions = sorted(int(v.version) for v in tracking.client().search_model_versions(f"name = '{name}'"))
        raise FeatherweightError(f"{name} has no version {which}; it has {', '.join(map(str, versions))}") from None


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


@contextmanager
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


@contextmanager
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
    """Moves an alias to a version, which is first tried from the registry; the champion it replaces becomes previous.

    Raises:
        RuntimeError: the version is damaged or does not answer as it should; the alias stays where it is.
    """
    client = tracking.client()
    before = aliases(release.name)
    version = client.get_model_version(release.name, str(release.version))
    if version.tags.get(SELF_TEST_TAG) == release.digest and before.get(alias) == release.version:
        logger.info("%s@%s already is version %s", release.name, alias, release.version)
        return
    with downloaded(release) as bundle:
        self_test(bundle, release)
    client.set_model_version_tag(release.name, str(release.version), SELF_TEST_TAG, release.digest)
    replaced = before.get(alias)
    if alias == CHAMPION and replaced not in (None, release.version):
        client.set_registered_model_alias(release.name, PREVIOUS, str(replaced))
    client.set_registered_model_alias(release.name, alias, str(release.version))
    logger.info("%s@%s is now version %s", release.name, alias, release.version)

"""deploy: tries the registered model in a clean process, then moves the alias."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from tasks import store, tracking
from tasks.contracts import FeatherweightError, Release, StageConfig

logger = logging.getLogger("featherweight")

SELF_TEST_TAG = "featherweight.self_test"
SELF_TEST_TIMEOUT_S = 300
CLEAN_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


class DeploymentConfig(StageConfig):
    """Where a passed model goes."""

    alias: str = Field(
        "champion",
        title="Alias",
        description="Registry alias that is moved to the model once it passed.",
        pattern=r"^[a-z][a-z0-9_-]{0,62}$",
    )


@task(name="deploy", persist_result=False, cache_policy=NO_CACHE)
def deploy(release: Release, config: DeploymentConfig, *, run_id: str) -> Release:
    """Reloads the version from the registry, tries its golden rows in a clean process, and moves the alias last."""
    client = tracking.client()
    version = client.get_model_version(release.name, str(release.version))
    if version.tags.get("featherweight.verdict") != "passed":
        raise FeatherweightError(
            f"deploy: {release.name} version {release.version} has no passed verdict "
            f"({version.tags.get('featherweight.verdict', 'none')}); {config.alias} stays where it is"
        )
    aliases = client.get_registered_model(release.name).aliases
    tried = version.tags.get(SELF_TEST_TAG) == release.digest
    if tried and str(aliases.get(config.alias)) == str(release.version):
        logger.info("deploy: %s@%s already is version %s", release.name, config.alias, release.version)
    else:
        self_test(release)
        client.set_model_version_tag(release.name, str(release.version), SELF_TEST_TAG, release.digest)
        client.set_registered_model_alias(release.name, config.alias, str(release.version))
        logger.info("deploy: %s@%s is now version %s", release.name, config.alias, release.version)
    tracking.Run(run_id).tags({"featherweight.deployed": f"{release.name}@{config.alias}"})
    return release


def self_test(release: Release) -> dict[str, float]:
    """Downloads the registered model and lets its serving bundle test itself in a clean process.

    Raises:
        RuntimeError: what the registry gave is not the bundle that was registered, or it does not answer as it did.
    """
    import mlflow.artifacts

    with store.workspace() as folder:
        tracking.client()  # sets the registry that the URI is looked up in
        model = Path(mlflow.artifacts.download_artifacts(artifact_uri=release.model_uri, dst_path=str(folder)))
        bundle = model / "artifacts" / release.digest
        _require_identity(bundle, release)
        done = subprocess.run(
            [sys.executable, "-I", "-B", str(bundle / "predictor.py"), "--self-test"],
            env={name: os.environ[name] for name in CLEAN_ENVIRONMENT if name in os.environ},
            capture_output=True,
            text=True,
            timeout=SELF_TEST_TIMEOUT_S,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"deploy: self-test of {release.model_uri} failed: {done.stderr.strip()}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])  # after what providers print
    logger.info("deploy: %s answered %s golden rows", release.model_uri, result["golden_rows"])
    return result


def _require_identity(bundle: Path, release: Release) -> None:
    """Checks the listing against the digest and the manifest against the listing; the manifest vouches for the rest."""
    listing = (bundle / store.FILES).read_bytes() if (bundle / store.FILES).is_file() else b""
    manifest = (bundle / "manifest.json").read_bytes() if listing else b""
    if (
        hashlib.sha256(listing).hexdigest() != release.digest
        or hashlib.sha256(manifest).hexdigest() != json.loads(listing)["manifest.json"]
    ):
        raise RuntimeError(f"deploy: {release.model_uri} in the registry is not bundle {release.digest[:12]}")

"""register: builds the serving bundle and makes it a version of the registered model. Idempotent by digest."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from tasks.contracts.values import Digest, Outcome, Release, Splits, StageResult, Verdict
from tasks.engine import disk, registry, store, tracking
from tasks.engine.step import step
from tasks.reporting import markdown

logger = logging.getLogger("featherweight")


@step(name="register")
def register(name: str, outcome: Outcome, *, run_id: str) -> Release:
    """Publishes what passed as a serving bundle and as a version of the registered model ``name``."""
    assert outcome.verdict.passed, "only a passed verdict is registered"
    release = _version(name, serving_bundle(name, outcome, run_id), outcome.verdict, run_id)
    registry.nominate(registry.CANDIDATE, release)
    _note(release, run_id)
    return release


@step(name="keep")
def keep(
    name: str, splits: Splits, appraised: StageResult, baseline: StageResult, *, alias: str, run_id: str
) -> Release:
    """Makes a candidate that was not judged yet a version of the registered model, and lets an alias name it.

    Args:
        appraised: what ``appraise`` gave for the candidate, and ``baseline`` for its teacher.
        run_id: the MLflow run that holds the candidate's recipe as parameters.
    """
    teacher, candidate = _read(baseline, "appraisal.json"), _read(appraised, "appraisal.json")
    validation = {
        "device": {key: candidate[key] for key in ("provider", "cpu_model", "kernels", "threads")},
        "split": appraised.scorecard.split,
        "n": candidate["num_examples"],
        "models": [teacher | {"stage": "train"}, candidate | {"stage": "validate"}],
    }
    release = _version(name, _bundle(name, splits, appraised, validation, None, run_id), None, run_id)
    tracking.client().set_registered_model_alias(name, alias, str(release.version))
    _note(release, run_id)
    return release


def _read(result: StageResult, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store.path(result.evidence) / name).read_text(encoding="utf-8"))
    return found


def _note(release: Release, run_id: str) -> None:
    version = f"{release.name}/{release.version}"
    tracking.Run(run_id).tags({registry.DIGEST_TAG: release.digest, "featherweight.version": version})


def _version(name: str, digest: Digest, verdict: Verdict | None, run_id: str) -> Release:
    """Finds the version that already is this bundle, or creates one."""
    with disk.lock(f"register-{name}"):
        version = _find(name, digest)
        if version is None:
            version = _only(name, digest, _create(name, digest, verdict, run_id))
        else:
            logger.info("register: %s version %s already is this bundle", name, version)
    return Release(name=name, version=version, digest=digest, model_uri=f"models:/{name}/{version}")


def serving_bundle(name: str, outcome: Outcome, run_id: str) -> Digest:
    """Builds the bundle from what ``prepare`` and ``validate`` published, and publishes it."""
    stages = {stage.stage: stage for stage in outcome.stages}
    prepared, served = stages["prepare"], stages["validate"]
    assert prepared.splits is not None
    return _bundle(name, prepared.splits, served, _read(served, "validation.json"), outcome.verdict, run_id)


def _bundle(
    name: str, splits: Splits, served: StageResult, validation: dict[str, Any], verdict: Verdict | None, run_id: str
) -> Digest:
    from tasks.ml.data import datasets
    from tasks.ml.models import tokenization
    from tasks.ml.problem import problem_of
    from tasks.serving import bundle

    assert served.bundle is not None
    dataset, source = store.path(splits.digest), store.path(served.bundle.digest)
    about = datasets.info(dataset)
    recipe = tracking.client().get_run(run_id).data.params
    with store.workspace() as folder:
        bundle.build(
            folder,
            source=source,
            name=name,
            problem=served.bundle.problem,
            answer=problem_of(served.bundle.problem).answer(about.labels, about.units),
            base_model=recipe["base_model"],
            data=recipe["data.source"],
            tokenizer=tokenization.standalone(source / tokenization.FILE, max_length=about.max_length),
            golden=datasets.golden(dataset, "selection", bundle.GOLDEN_ROWS),
            validation=validation,
            verdict=verdict,
        )
        return store.publish(folder)


def _find(name: str, digest: Digest) -> int | None:
    """The first version of the registered model that is this bundle, if any."""
    query = f"name = '{name}' and tags.`{registry.DIGEST_TAG}` = '{digest}'"
    return min((int(version.version) for version in tracking.client().search_model_versions(query)), default=None)


def _only(name: str, digest: Digest, created: int) -> int:
    """Takes a version back if another machine, which our lock does not hold off, registered the same bundle before."""
    first = _find(name, digest)
    if first is None or first == created:
        return created
    tracking.client().delete_model_version(name, str(created))
    logger.info("register: %s version %s already is this bundle; another machine was first", name, first)
    return first


def _create(name: str, digest: Digest, verdict: Verdict | None, run_id: str) -> int:
    from mlflow.exceptions import MlflowException

    client = tracking.client()
    tags = {
        registry.DIGEST_TAG: digest,
        registry.VERDICT_TAG: verdict.status.value if verdict else "none",
        "featherweight.verdict_reason": verdict.reason if verdict else "the test split has not seen it",
    }
    model_id = _log_model(store.path(digest), tags, run_id)
    try:
        client.create_registered_model(name, description=f"Compressed by Featherweight, recipe {name}.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    checks = verdict.checks if verdict else ()
    sentences = [f"- {markdown.text(check.explanation)}" for check in checks] or ["Not judged yet."]
    version = client.create_model_version(
        name, f"models:/{model_id}", run_id, tags=tags, description="\n".join(sentences), model_id=model_id
    )
    logger.info("register: %s version %s", name, version.version)
    return int(version.version)


def _log_model(bundle: Path, tags: dict[str, str], run_id: str) -> str:
    """Logs the bundle as a pyfunc LoggedModel of the run, from code and without a pickle; returns its id.

    The model is created by explicit ids: MLflow's active run is thread-local, and its fluent ``log_model`` would put
    the model into the default experiment and end the run.
    """
    # MLflow would otherwise copy a uv project that happens to lie in the working directory into the model.
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
    import mlflow.pyfunc
    import pandas as pd  # type: ignore[import-untyped]
    from mlflow.models import Model

    from tasks.serving import model, predictor

    run = tracking.client().get_run(run_id)
    logged = tracking.client().create_logged_model(
        run.info.experiment_id, name="serving", source_run_id=run_id, tags=tags, params=run.data.params
    )
    column = predictor.answers(json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))).INPUT
    example = json.loads((bundle / "golden.json").read_text(encoding="utf-8"))[0][column]
    Model.log(
        artifact_path=None,
        name="serving",
        flavor=mlflow.pyfunc,
        run_id=run_id,
        model_id=logged.model_id,
        python_model=str(model.CODE),
        artifacts={model.BUNDLE: str(bundle)},
        input_example=pd.DataFrame({column: [example]}),
        pip_requirements=model.requirements(),
        **model.interface(bundle),
    )
    return str(logged.model_id)

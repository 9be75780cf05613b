"""Registration: what a person finds in MLflow, and that doing it twice does it once."""

from __future__ import annotations

import json
from collections.abc import Iterator

import mlflow
import pytest
import yaml

from tasks import register as registering
from tasks.contracts.values import Release
from tasks.engine import disk, registry, store, tracking
from tasks.register import register, serving_bundle
from tests.tasks.shippable import RECIPE, TEXTS, outcome


@pytest.fixture
def run_id(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with tracking.pipeline_run("polarity", RECIPE, run_name="first") as run_id:
        yield run_id


@pytest.fixture
def release(run_id: str) -> Release:
    return register.fn("polarity", outcome(run_id), run_id=run_id)


def test_the_version_carries_digest_verdict_and_model(release: Release, run_id: str) -> None:
    version = tracking.client().get_model_version("polarity", str(release.version))
    assert release.version == 1
    assert release.model_uri == "models:/polarity/1"
    assert version.status == "READY"
    assert version.run_id == run_id
    assert version.tags[registry.DIGEST_TAG] == release.digest
    assert version.tags["featherweight.verdict"] == "passed"
    assert "accuracy fell by 0.71 points" in version.description
    tags = tracking.client().get_run(run_id).data.tags
    assert (tags[registry.DIGEST_TAG], tags["featherweight.version"]) == (release.digest, "polarity/1")


def test_two_machines_that_register_one_bundle_at_once_make_one_version(
    release: Release, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second has looked before the first had created its version: their locks are not the same."""
    find = registering._find
    answers = iter([None])
    monkeypatch.setattr(registering, "_find", lambda *which: next(answers, find(*which)))
    assert register.fn("polarity", outcome(run_id), run_id=run_id) == release
    assert [version.version for version in tracking.client().search_model_versions("name = 'polarity'")] == [1]


def test_the_model_is_logged_on_the_run_and_in_its_experiment(release: Release, run_id: str) -> None:
    client = tracking.client()
    run = client.get_run(run_id)
    version = client.get_model_version("polarity", str(release.version))
    logged = client.get_logged_model(version.source.removeprefix("models:/"))
    assert run.info.status == "RUNNING"
    assert [output.model_id for output in run.outputs.model_outputs] == [logged.model_id]
    assert logged.experiment_id == run.info.experiment_id
    assert logged.status.value == "READY"
    assert logged.params["base_model"] == RECIPE["base_model"]
    assert mlflow.active_run() is None


def test_the_registered_model_answers_and_holds_no_pickle(release: Release, tmp_path) -> None:  # type: ignore[no-untyped-def]
    local = mlflow.artifacts.download_artifacts(artifact_uri=release.model_uri, dst_path=str(tmp_path))
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not {name for name in names if name.endswith((".pkl", ".pickle", ".bin", ".pt"))}
    model = mlflow.pyfunc.load_model(local)
    answers = model.predict([{"text": "an utter delight"}, {"text": "a waste"}])
    assert answers["label"].tolist() == ["positive", "negative"]
    assert answers["probabilities"][0]["positive"] == answers["score"][0] > 0.8
    assert model.input_example is not None
    described = yaml.safe_load((tmp_path / "MLmodel").read_text())
    assert json.loads(described["signature"]["inputs"])[0]["name"] == "text"
    assert [column["name"] for column in json.loads(described["signature"]["outputs"])] == [
        "label",
        "score",
        "probabilities",
    ]
    requirements = (tmp_path / "requirements.txt").read_text()
    assert "onnxruntime" in requirements
    assert "tokenizers==" in requirements
    assert "torch" not in requirements
    assert "transformers" not in requirements


def test_registering_the_same_again_changes_nothing(release: Release, run_id: str) -> None:
    with tracking.pipeline_run("polarity", RECIPE, run_name="second") as second:
        assert register.fn("polarity", outcome(second), run_id=second) == release
        assert tracking.client().get_run(second).data.tags["featherweight.version"] == "polarity/1"
    assert len(tracking.client().search_model_versions("name = 'polarity'")) == 1
    assert len(tracking.client().search_logged_models([tracking.experiment("polarity")])) == 1


def test_another_verdict_or_model_is_another_version(release: Release, run_id: str) -> None:
    other = register.fn("polarity", outcome(run_id, lost=61), run_id=run_id)
    assert other.version == 2
    assert other.digest != release.digest


def test_a_bundle_knows_nothing_of_the_run_that_made_it(run_id: str) -> None:
    first = serving_bundle("polarity", outcome(run_id), run_id)
    with tracking.pipeline_run("polarity", RECIPE, run_name="second") as second:
        assert serving_bundle("polarity", outcome(second), second) == first
    text = b"".join(path.read_bytes() for path in store.path(first).iterdir())
    assert run_id.encode() not in text
    assert str(disk.home()).encode() not in text


def test_golden_rows_come_from_the_selection_split(release: Release) -> None:
    golden = json.loads((store.path(release.digest) / "golden.json").read_text())
    assert {row["text"] for row in golden[:-2]} <= set(TEXTS)
    assert golden[-2]["text"] == ""
    assert set(golden[-1]["text"].split()) <= set(" ".join(TEXTS).split())


def test_what_did_not_pass_is_not_registered(run_id: str) -> None:
    with pytest.raises(AssertionError, match="only a passed verdict"):
        register.fn("polarity", outcome(run_id, n=40, lost=0, gained=0), run_id=run_id)
    assert tracking.client().search_registered_models() == []

"""Deployment: the alias moves last, only to what answers, and the served model answers over HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from prefect import flow

from tasks import register as registration
from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Release
from tasks.deploy import DeploymentConfig, deploy
from tasks.engine import disk, registry, store, tracking
from tasks.judge import BudgetConfig, judge
from tasks.register import register
from tasks.serving import predictor
from tests.tasks.shippable import RECIPE, outcome

CONFIG = DeploymentConfig()


@pytest.fixture
def run_id(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with tracking.pipeline_run("polarity", RECIPE, run_name="first") as run_id:
        yield run_id


@pytest.fixture
def release(run_id: str) -> Release:
    return register.fn("polarity", outcome(run_id), run_id=run_id)


def _champion() -> str | None:
    try:
        return str(tracking.client().get_model_version_by_alias("polarity", "champion").version)
    except MlflowException:
        return None


def _in_registry(release: Release, name: str) -> Path:
    """A file of the registered model, where the artifact store keeps it."""
    (path,) = (disk.home() / "mlartifacts").rglob(f"{release.digest}/{name}")
    return path


def test_the_alias_moves_to_what_answered(release: Release, run_id: str) -> None:
    assert _champion() is None
    assert deploy.fn(release, CONFIG, run_id=run_id) == release
    assert _champion() == "1"
    version = tracking.client().get_model_version("polarity", "1")
    assert version.tags[registry.SELF_TEST_TAG] == release.digest
    assert tracking.client().get_run(run_id).data.tags["featherweight.deployed"] == "polarity@champion"


def test_judge_register_and_deploy_are_tasks_of_a_flow(run_id: str) -> None:
    """Through Prefect's engine, as ``flows.compress`` calls them."""

    @flow(name="ship")
    def ship() -> Release:
        passed = outcome(run_id)
        verdict = judge(passed.stages[-1].evidence, BudgetConfig(), run_id=run_id)
        assert verdict.passed
        return deploy(register("polarity", passed, run_id=run_id), CONFIG, run_id=run_id)

    assert ship().version == 1
    assert _champion() == "1"


def test_the_self_test_runs_every_golden_row_from_the_registry(release: Release) -> None:
    with registry.downloaded(release) as model:
        result = registry.self_test(model, release)
    assert result["golden_rows"] == 18
    assert result["max_abs_error"] < 1e-4


def test_code_of_the_registry_is_not_executed(release: Release, run_id: str, tmp_path: Path) -> None:
    """A bundle whose predictor is a stranger's, right by every digest that the registry itself holds."""
    marker = tmp_path / "executed"
    with store.workspace() as folder:
        for name in store.listing(store.path(release.digest)):
            if name != store.FILES:
                shutil.copyfile(store.path(release.digest) / name, folder / name)
        (folder / "predictor.py").write_text(f"open({str(marker)!r}, 'w')", encoding="utf-8")
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        manifest["files"]["predictor.py"] = hashlib.sha256((folder / "predictor.py").read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        digest = store.publish(folder)
    version = registry.find("polarity", registration._create("polarity", digest, None, run_id))
    marker.unlink()  # a stranger tried it out while registering
    with registry.downloaded(registry.release(version)) as bundle:
        assert registry.self_test(bundle, release)["golden_rows"] == 18
        with registry.servable(bundle) as model:
            served = next(model.rglob("predictor.py")).read_text(encoding="utf-8")
    assert served == Path(predictor.__file__).read_text(encoding="utf-8")
    assert not marker.exists()


def test_deploying_again_is_quick_and_changes_nothing(release: Release, run_id: str) -> None:
    deploy.fn(release, CONFIG, run_id=run_id)
    _in_registry(release, "model.onnx").unlink()  # a second self-test would notice
    deploy.fn(register.fn("polarity", outcome(run_id), run_id=run_id), CONFIG, run_id=run_id)
    assert _champion() == "1"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("model.onnx", "model.onnx was changed"), ("manifest.json", "is not bundle"), ("files.json", "is not bundle")],
)
def test_a_damaged_copy_in_the_registry_leaves_the_alias(release: Release, run_id: str, name: str, reason: str) -> None:
    deploy.fn(release, CONFIG, run_id=run_id)
    other = register.fn("polarity", outcome(run_id, lost=61), run_id=run_id)
    path = _in_registry(other, name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=reason):
        deploy.fn(other, CONFIG, run_id=run_id)
    assert _champion() == "1"
    assert registry.SELF_TEST_TAG not in tracking.client().get_model_version("polarity", str(other.version)).tags


def test_a_version_without_a_passed_verdict_is_refused(release: Release, run_id: str) -> None:
    tracking.client().set_model_version_tag("polarity", "1", "featherweight.verdict", "undecidable")
    with pytest.raises(FeatherweightError, match=r"polarity version 1 has no passed verdict \(undecidable\)"):
        deploy.fn(release, CONFIG, run_id=run_id)
    assert _champion() is None


def test_shipping_again_imports_neither_torch_nor_transformers(release: Release, run_id: str) -> None:
    deploy.fn(release, CONFIG, run_id=run_id)
    program = (
        "import sys\n"
        "from tasks.contracts.values import Outcome\n"
        "from tasks.register import register\n"
        "from tasks.deploy import DeploymentConfig, deploy\n"
        f"outcome = Outcome.model_validate_json({outcome(run_id).model_dump_json()!r})\n"
        f"release = register.fn('polarity', outcome, run_id={run_id!r})\n"
        f"deploy.fn(release, DeploymentConfig(), run_id={run_id!r})\n"
        "print(release.version, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "1 []", done.stderr


def _post(url: str, content: Any) -> Any:
    request = urllib.request.Request(
        url, data=json.dumps(content).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.fixture
def server(release: Release, run_id: str, tmp_path: Path) -> Iterator[str]:
    """MLflow's own scoring server on the deployed alias."""
    deploy.fn(release, CONFIG, run_id=run_id)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "mlflow", "models", "serve", "-m", "models:/polarity@champion", "--env-manager", "local"]
    environment = {
        "MLFLOW_TRACKING_URI": tracking.tracking_uri(),
        # MLflow starts uvicorn by its name.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "FEATHERWEIGHT_THREADS": "1",
    }
    with (tmp_path / "server.log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait_until_it_answers(f"http://127.0.0.1:{port}/ping", process, tmp_path / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


def test_the_deployed_model_answers_over_http(server: str, release: Release) -> None:
    answer = _post(f"{server}/invocations", {"dataframe_records": [{"text": "an utter delight"}, {"text": "a waste"}]})
    good, bad = answer["predictions"]
    assert set(good) == {"label", "score", "probabilities"}
    assert (good["label"], bad["label"]) == ("positive", "negative")
    assert good["score"] == good["probabilities"]["positive"]
    assert sum(bad["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)

    for row in json.loads((store.path(release.digest) / "golden.json").read_text()):
        (found,) = _post(f"{server}/invocations", {"inputs": [{"text": row["text"]}]})["predictions"]
        assert found["probabilities"] == pytest.approx(row["probabilities"], abs=1e-4)

    for wrong in ({"dataframe_records": [{"words": "fine"}]}, {"dataframe_records": [{"text": 3}]}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            _post(f"{server}/invocations", wrong)
        assert refused.value.code == 400

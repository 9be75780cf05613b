"""``@stage`` under the real engine: what is reused, what is not, what is recorded, and what a failure leaves."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Bundle
from tasks.engine import keys, store, tracking
from tests.tasks import tiny_stages
from tests.tasks.tiny_stages import executions, tiny

ROOT = Path(__file__).parents[3]


def forget_code() -> None:
    """A process reads its own code once; these tests change it."""
    keys.code_digest.cache_clear()
    keys._read.cache_clear()


@pytest.fixture(autouse=True)
def _count_from_zero() -> Iterator[None]:
    executions.clear()
    forget_code()
    yield
    forget_code()


def test_the_same_again_is_cached() -> None:
    first, second = tiny(), tiny()
    assert executions == ["make", "shrink", "effect", "effect"]
    assert [result.cached for result in first] == [False, False, False]
    assert [result.cached for result in second] == [True, True, False]
    assert [result.bundle for result in first] == [result.bundle for result in second]
    assert [result.scorecard for result in first] == [result.scorecard for result in second]
    assert {result.run_id for result in first}.isdisjoint(result.run_id for result in second)


def test_an_interrupted_stage_goes_on_in_its_own_run() -> None:
    with pytest.raises(FeatherweightError, match="interrupted"):
        tiny_stages.patiently("a")
    [left] = tracking.find_runs("tags.`featherweight.stage` = 'patient'")
    assert left.info.status == "FAILED"
    result = tiny_stages.patiently("a")
    assert result.run_id == left.info.run_id
    run = tracking.client().get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags[tracking.ERROR_TAG] == ""
    parent = tracking.client().get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.info.status == "FINISHED"
    for metric in ("loss", "selection_accuracy"):
        points = tracking.client().get_metric_history(result.run_id, metric)
        assert [point.step for point in points] == list(range(1, tiny_stages.STEPS + 1)), metric
    again = tiny_stages.patiently("a")
    assert again.cached
    assert again.run_id != result.run_id


def test_a_damaged_run_id_beside_a_checkpoint_begins_a_new_run(home: Path) -> None:
    with pytest.raises(FeatherweightError, match="interrupted"):
        tiny_stages.patiently("c")
    [said] = (home / "store" / "checkpoints").glob("*/run_id")
    said.write_bytes(b"\xff" + said.read_bytes()[1:])
    result = tiny_stages.patiently("c")
    assert tracking.client().get_run(result.run_id).info.status == "FINISHED"


def test_a_stage_whose_run_was_deleted_goes_on_in_a_new_one() -> None:
    with pytest.raises(FeatherweightError, match="interrupted"):
        tiny_stages.patiently("b")
    [left] = tracking.find_runs("tags.`featherweight.stage` = 'patient' and attributes.status = 'FAILED'")
    tracking.client().delete_run(left.info.run_id)
    result = tiny_stages.patiently("b")
    assert result.run_id != left.info.run_id
    assert tracking.client().get_run(result.run_id).info.status == "FINISHED"


def test_prefect_shows_the_reuse_as_cached() -> None:
    tiny()
    run_id = tiny()[0].run_id
    task_run_id = tracking.client().get_run(run_id).data.tags["prefect.task_run_id"]
    task_run = tiny_stages.recorded(UUID(task_run_id))
    assert task_run.name.startswith("make")
    assert task_run.state_name == "Cached"
    assert task_run.state_type is not None
    assert task_run.state_type.value == "COMPLETED"


def test_a_late_change_keeps_the_early_stages() -> None:
    tiny()
    executions.clear()
    tiny(shrink_width=2)
    assert executions == ["shrink", "effect"]


def test_an_early_change_with_the_same_result_keeps_the_late_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny()
    executions.clear()
    monkeypatch.setattr(keys, "NUMERICS", ())
    keys.numerics_versions.cache_clear()
    tiny()
    keys.numerics_versions.cache_clear()
    assert executions == ["make", "shrink", "effect"], "other numerics libraries compute everything again"


def test_a_failure_publishes_nothing_and_is_recorded() -> None:
    with pytest.raises(FeatherweightError, match="must not be negative"):
        tiny(shrink_width=-1)
    failed = tracking.find_runs("tags.`featherweight.stage` = 'shrink'")[0]
    assert failed.info.status == "FAILED"
    assert "must not be negative" in failed.data.tags["featherweight.error"]
    parent = tracking.find_runs("tags.`featherweight.kind` = 'pipeline'")[0]
    assert parent.info.status == "FAILED"
    executions.clear()
    with pytest.raises(FeatherweightError):
        tiny(shrink_width=-1)
    assert executions == ["shrink"], "a failure is never reused"


def test_each_stage_is_a_child_run_with_its_parameters_and_metrics() -> None:
    made, *_ = tiny(source="films", width=3)
    run = tracking.client().get_run(made.run_id)
    parent = tracking.client().get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["featherweight.kind"] == "pipeline"
    assert run.info.status == parent.info.status == "FINISHED"
    assert run.data.params["source"] == "films"
    assert run.data.params["config.width"] == "3"
    assert run.data.metrics["accuracy"] == 0.75
    assert run.data.metrics["loss"] == 0.5
    again, *_ = tiny(source="films", width=3)
    cached = tracking.client().get_run(again.run_id).data
    assert cached.tags["featherweight.computed_by"] == made.run_id
    assert cached.metrics["accuracy"] == 0.75


def test_a_damaged_bundle_is_computed_again(caplog: pytest.LogCaptureFixture) -> None:
    made, *_ = tiny()
    assert made.bundle is not None
    (store.path(made.bundle.digest) / "model").write_text("damaged", encoding="utf-8")
    store._verified.cache_clear()
    executions.clear()
    with caplog.at_level(logging.WARNING, "featherweight"):
        again = tiny()
    assert executions == ["make", "effect"]
    assert again[0].bundle == made.bundle
    assert "quarantine" in caplog.text


def test_an_argument_of_the_wrong_name_is_refused() -> None:
    with pytest.raises(TypeError):
        tiny_stages.shrink(bundle=Bundle(digest="0" * 64, format="torch", problem="tiny"), run_id="r")


PROCESS = """
from flows.servers import embedded
embedded.configure()
import os, sys
from tests.tasks import tiny_stages
tiny_stages.tiny(source="shared")
print(tiny_stages.executions)
"""


def test_two_processes_compute_a_key_once(prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    command = [sys.executable, "-c", PROCESS]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    ran = "".join(process.communicate(timeout=120)[0] for process in both)
    assert all(process.returncode == 0 for process in both)
    assert ran.count("make") == ran.count("shrink") == 1
    assert ran.count("effect") == 2

"""MLflow by explicit run id, against a real SQLite store."""

from __future__ import annotations

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.contracts.base import FeatherweightError
from tasks.engine import tracking

ROOT = Path(__file__).parents[3]


def test_flatten_gives_dotted_names_and_plain_text() -> None:
    nested = {"name": "demo", "training": {"epochs": 3, "rates": [1, 2]}, "empty": None, "flag": True}
    assert tracking.flatten(nested) == {
        "name": "demo", "training.epochs": "3", "training.rates": "[1, 2]", "empty": "null", "flag": "true",
    }  # fmt: skip


def test_a_pipeline_run_is_finished_with_its_parameters() -> None:
    with tracking.pipeline_run("recipe", {"a": {"b": 1}}, run_name="first", tags={"k": "v"}) as run_id:
        assert tracking.client().get_run(run_id).info.status == "RUNNING"
    run = tracking.client().get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert run.data.params == {"a.b": "1"}
    assert run.data.tags["k"] == "v"
    assert tracking.client().get_experiment(run.info.experiment_id).name == "recipe"


@pytest.mark.parametrize(("error", "status"), [(ValueError("bad row 7"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_how_a_block_ended_is_how_its_run_ended(error: BaseException, status: str) -> None:
    with (
        pytest.raises(type(error)),
        tracking.pipeline_run("recipe", {}, run_name="r") as run_id,
        tracking.stage_run("train", run_id, {}) as stage,
    ):
        raise error
    for name in (run_id, stage.run_id):
        run = tracking.client().get_run(name)
        assert run.info.status == status
        if status == "FAILED":
            assert run.data.tags["featherweight.error"] == "ValueError: bad row 7"


def test_more_parameters_than_mlflow_takes_at_once() -> None:
    with tracking.pipeline_run("recipe", {f"p{i}": i for i in range(250)}, run_name="r") as run_id:
        pass
    assert len(tracking.client().get_run(run_id).data.params) == 250


def test_what_is_not_finite_is_not_logged() -> None:
    with tracking.pipeline_run("recipe", {}, run_name="r") as run_id:
        tracking.Run(run_id).metrics({"good": 1.0, "nan": math.nan, "inf": math.inf}, step=3)
    assert tracking.client().get_run(run_id).data.metrics == {"good": 1.0}
    assert [point.step for point in tracking.client().get_metric_history(run_id, "good")] == [3]


def test_other_threads_log_to_the_run_they_name() -> None:
    with tracking.pipeline_run("recipe", {}, run_name="r") as run_id, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: tracking.Run(run_id).metrics({"m": float(i)}, step=i), range(20)))
    assert len(tracking.client().get_metric_history(run_id, "m")) == 20
    assert len(tracking.find_runs("")) == 1


def test_current_is_the_innermost_stage_and_ends_with_it() -> None:
    with tracking.pipeline_run("recipe", {}, run_name="r") as run_id:
        with tracking.stage_run("train", run_id, {}) as stage:
            assert tracking.current() is stage
        with pytest.raises(LookupError):
            tracking.current()


def test_texts_and_directories_are_artifacts(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a", encoding="utf-8")
    with tracking.pipeline_run("recipe", {}, run_name="r") as run_id:
        tracking.Run(run_id).text("grün", "note.txt")
        tracking.Run(run_id).artifact(tmp_path / "folder", "inner")
    assert tracking.read_text(run_id, "note.txt") == "grün"
    assert tracking.read_text(run_id, "inner/a.txt") == "a"
    assert tracking.read_text(run_id, "absent.txt") is None


def test_runs_are_found_newest_first_and_by_experiment() -> None:
    ids = []
    for name in ("one", "two", "one"):
        with tracking.pipeline_run(name, {}, run_name="r") as run_id:
            ids.append(run_id)
    assert {run.info.run_id for run in tracking.find_runs("", names=["one"])} == {ids[0], ids[2]}
    assert [run.info.run_id for run in tracking.find_runs("", max_results=1)] == [ids[2]]
    assert tracking.find_runs("", names=["three"]) == []


def test_a_deleted_experiment_says_what_to_do() -> None:
    tracking.client().delete_experiment(tracking.experiment("gone"))
    with pytest.raises(FeatherweightError, match="was deleted; restore it"):
        tracking.experiment("gone")


def test_artifacts_are_kept_under_the_home(home: Path) -> None:
    with tracking.pipeline_run("recipe", {}, run_name="r") as run_id:
        tracking.Run(run_id).text("x", "x.txt")
    assert len(list((home / "mlartifacts").rglob("x.txt"))) == 1


START = "from tasks.engine import tracking; print(tracking.experiment('shared'))"


def test_processes_that_meet_on_a_fresh_database_all_get_through(mlflow_database: Path) -> None:
    mlflow_database.unlink()
    processes = [
        subprocess.Popen([sys.executable, "-c", START], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    answers = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(set(answers)) == 1

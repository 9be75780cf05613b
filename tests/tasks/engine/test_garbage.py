"""Garbage: what nobody needs goes, and nothing else, whoever is at work and whenever it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Bundle, StageResult
from tasks.engine import disk, garbage, processes, registry, store, tracking
from tests.tasks import tiny_stages

ROOT = Path(__file__).parents[3]
LONG_AGO = 1_000_000_000
OLDEST = processes.oldest


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process, which runs the flows as well, were not alive when garbage is looked for."""
    monkeypatch.setattr(processes, "oldest", lambda: float("inf"))


def kinds(*, remove: bool = False, unknown: bool = False) -> dict[str, int]:
    return {one.kind: one.count for one in garbage.collect(remove=remove, unknown=unknown)}


def delete_all_runs() -> None:
    for run in list(tracking.every_run(tracking.client())):
        tracking.client().delete_run(run.info.run_id)


def end_being_a_run() -> None:
    processes._ALIVE.close()
    processes._this_process.cache_clear()


def stored(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "store" / "objects").iterdir())


def test_a_new_home_and_one_whose_runs_are_all_there_have_no_garbage(home: Path) -> None:
    assert kinds(remove=True) == {}
    tiny_stages.tiny()
    assert kinds(remove=True, unknown=True) == {}
    tiny_stages.executions.clear()
    tiny_stages.tiny()
    assert tiny_stages.executions == ["effect"]


def test_what_deleted_runs_came_to_goes_when_it_is_asked_for_and_is_computed_anew(home: Path) -> None:
    tiny_stages.tiny()
    delete_all_runs()
    tiny_stages.tiny(width=2)
    before = stored(home)
    assert kinds() == {garbage.RESULTS: 3}  # the records of make and shrink, and the object of both
    assert stored(home) == before, "it was only looked at"
    [found] = garbage.collect(remove=True)
    assert found.num_bytes > 0
    assert len(stored(home)) == len(before) - 1
    assert list((home / "store" / "tmp").iterdir()) == []
    assert kinds() == {}
    tiny_stages.executions.clear()
    tiny_stages.tiny(width=2)
    assert tiny_stages.executions == ["effect"], "what another run came to is still there"
    tiny_stages.tiny()
    assert tiny_stages.executions == ["effect", "make", "shrink", "effect"]
    assert stored(home) == before


def test_what_a_run_reused_is_needed_by_it_though_who_computed_it_was_deleted(home: Path) -> None:
    tiny_stages.tiny()
    delete_all_runs()
    tiny_stages.tiny()
    assert kinds(remove=True) == {}


def test_what_another_mlflow_may_know_is_kept_unless_it_is_said_that_none_does(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_stages.tiny()
    (home / "mlflow.db").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'other.db'}")
    assert kinds(remove=True) == {}
    assert kinds(unknown=True) == {garbage.RESULTS: 3}


def test_a_home_has_runs_of_its_own_beside_those_of_a_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_stages.tiny()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'other.db'}")
    assert kinds(remove=True, unknown=True) == {}


def test_a_registered_version_keeps_its_bundle(home: Path) -> None:
    made = tiny_stages.tiny()[0].bundle
    assert made is not None
    client = tracking.client()
    client.create_registered_model("tiny")
    client.create_model_version("tiny", str(store.path(made.digest)), tags={registry.DIGEST_TAG: made.digest})
    delete_all_runs()
    assert kinds(remove=True) == {garbage.RESULTS: 2}
    assert stored(home) == [made.digest]


def test_resumable_state_is_kept_as_long_as_its_run(home: Path) -> None:
    with pytest.raises(FeatherweightError, match="interrupted"):
        tiny_stages.patiently("kept")
    assert kinds(remove=True) == {}
    tiny_stages.patiently("kept")
    with pytest.raises(FeatherweightError, match="interrupted"):
        tiny_stages.patiently("deleted")
    delete_all_runs()
    assert kinds(remove=True) == {garbage.RESULTS: 2, garbage.CHECKPOINTS: 1}
    assert list((home / "store" / "checkpoints").iterdir()) == []


def test_answers_go_with_their_teacher(home: Path) -> None:
    teacher = tiny_stages.tiny()[0].bundle
    assert teacher is not None
    for name in (f"{teacher.digest}-code", f"{'0' * 64}-code"):
        path = home / "store" / "answers" / name / "cpu" / "logits" / "a.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"answers")
        os.utime(path, (LONG_AGO, LONG_AGO))
        for folder in path.parents[:3]:
            os.utime(folder, (LONG_AGO, LONG_AGO))
    assert kinds(remove=True) == {garbage.ANSWERS: 1}
    assert [path.name for path in (home / "store" / "answers").iterdir()] == [f"{teacher.digest}-code"]


def test_what_belongs_to_deleted_runs_elsewhere_in_the_home_goes(home: Path) -> None:
    tiny_stages.tiny()
    run_id = next(tracking.every_run(tracking.client())).info.run_id
    uploaded = home / "mlartifacts" / run_id / "artifacts" / "objects" / "digest" / "model"
    report, search = home / "reports" / f"{run_id}.html", home / "searches" / "one" / "run"
    for path in (uploaded, report, search):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(run_id, encoding="utf-8")
        for one in (path, path.parent):
            os.utime(one, (LONG_AGO, LONG_AGO))
    assert kinds(remove=True) == {}
    tracking.client().delete_run(run_id)
    assert kinds(remove=True) == {garbage.REPORTS: 1, garbage.SEARCHES: 1, garbage.UPLOADS: 1}
    assert not any(path.exists() for path in (uploaded, report, search))


def test_what_killed_processes_left_goes(home: Path) -> None:
    left = [
        home / "store" / "tmp" / "workspace" / "half", home / "store" / "records" / ".abc" / "key.json",
        home / "store" / "answers" / "teacher" / ".def" / "answers", home / "store" / "quarantine" / "x" / "model",
    ]  # fmt: skip
    for path in left:
        path.parent.mkdir(parents=True)
        path.write_text("half", encoding="utf-8")
        for one in (path, *path.parents[:2]):
            os.utime(one, (LONG_AGO, LONG_AGO))
    with store.workspace() as alive:
        assert kinds(remove=True) == {garbage.SCRATCH: 2, garbage.QUARANTINE: 1, garbage.ANSWERS: 1}
        assert alive.is_dir()
    assert not any(path.exists() for path in left)


def publish(text: str, *, record: str) -> str:
    """Publishes and records what no run in MLflow names, long ago."""
    with store.workspace() as directory:
        (directory / "model").write_text(text, encoding="utf-8")
        bundle = Bundle(digest=store.publish(directory), format="torch", problem="tiny")
    store.write_record(record, StageResult(bundle=bundle, stage="train", run_id="unknown"))
    for path in (store.path(bundle.digest), disk.folder("records") / f"{record}.json"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    return bundle.digest


AT_WORK = """
    import sys
    from tasks.engine import disk, store
    with disk.lock("under-way"), store.workspace() as directory:
        (directory / "model").write_text("new")
        reused = store.read_record("reused")
        print(store.publish(directory), reused.bundle.digest, flush=True)
        sys.stdin.read()
"""


def other_process(code: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT, env={**os.environ, **variables}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_what_a_living_process_made_or_uses_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "oldest", OLDEST)
    for name in ("reused", "idle"):
        publish(name, record=name)
    end_being_a_run()
    with other_process(AT_WORK) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        in_use = other.stdout.readline().split()
        checkpoint = home / "store" / "checkpoints" / "under-way"
        checkpoint.mkdir(parents=True)
        assert kinds(remove=True, unknown=True) == {garbage.RESULTS: 2}
        assert stored(home) == sorted(in_use)
        assert checkpoint.is_dir(), "a stage is executed under this key"
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert kinds(remove=True, unknown=True) == {garbage.RESULTS: 3, garbage.CHECKPOINTS: 1}


def test_nobody_begins_to_use_what_is_being_taken_away(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish("model", record="key")
    bury, is_taken, read = garbage._bury, threading.Event(), threading.Event()

    def slowly(path: Path, graveyard: Path) -> None:
        bury(path, graveyard)
        is_taken.set()
        assert not read.wait(0.5), "while its record is gone and its object is there"

    def begin() -> None:
        assert is_taken.wait(60)
        assert store.read_record("key") is None
        read.set()

    monkeypatch.setattr(garbage, "_bury", slowly)
    with ThreadPoolExecutor() as pool:
        began = pool.submit(begin)
        assert kinds(remove=True, unknown=True) == {garbage.RESULTS: 2}
        began.result(60)
    digest = publish("model", record="key")
    assert store.path(digest).is_dir()


def test_who_is_killed_while_taking_garbage_away_leaves_a_home_that_works(home: Path) -> None:
    tiny_stages.tiny()
    delete_all_runs()
    killed = """
        import os, signal
        from tasks.engine import garbage
        bury, moved = garbage._bury, []
        def once(path, graveyard):
            bury(path, graveyard)
            moved.append(path)
            if len(moved) == AFTER:
                os.kill(os.getpid(), signal.SIGKILL)
        garbage._bury = once
        garbage.processes.oldest = lambda: float("inf")
        garbage.collect(remove=True)
    """
    for after in (1, 2):
        with other_process(killed.replace("AFTER", str(after))) as other:
            assert other.wait() == -signal.SIGKILL
        tiny_stages.executions.clear()
        results = tiny_stages.tiny()
        assert {"make", "shrink"} & set(tiny_stages.executions)
        assert results[0].bundle is not None
        assert store.path(results[0].bundle.digest).is_dir()
        delete_all_runs()
    assert kinds(remove=True)[garbage.RESULTS] >= 1
    assert kinds() == {}
    assert stored(home) == []


def test_the_command_shows_first_and_removes_when_told(home: Path) -> None:
    tiny_stages.tiny()
    delete_all_runs()

    def said(*options: str) -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-m", "flows.command.cli", "gc", "--json", *options],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found: dict[str, object] = json.loads(done.stdout)
        return found

    end_being_a_run()
    first, second = said(), said("--yes")
    assert first["num_bytes"] == second["num_bytes"] != 0
    assert [first["removed"], second["removed"]] == [False, True]
    assert stored(home) == []

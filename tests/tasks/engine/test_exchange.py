"""Workers without a shared disk: what one made, another finds in MLflow by key and by digest, and verifies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tasks.contracts.base import FeatherweightError
from tasks.engine import disk, exchange, store, tracking
from tests.tasks.tiny_stages import executions, tiny


@pytest.fixture(autouse=True)
def _a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tracking database for all homes of the test; ``tests/flows/servers/test_team.py`` has a real server."""
    executions.clear()
    monkeypatch.setenv(exchange.SECRET, "known-to-all-workers")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri())
    monkeypatch.setattr(tracking, "is_remote", lambda: True)


@pytest.fixture
def move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Goes to the empty home of another worker."""

    def move() -> None:
        monkeypatch.setenv("FEATHERWEIGHT_HOME", str(tmp_path / "elsewhere"))
        executions.clear()

    return move


def uploaded(run_id: str) -> list[Path]:
    """Files of the objects that a run holds, without the listing."""
    artifacts = Path(unquote(urlsplit(tracking.client().get_run(run_id).info.artifact_uri).path))
    return [path for path in (artifacts / "objects").rglob("*") if path.name == "model"]


def test_another_worker_reuses_results_and_has_their_objects(move: Callable[[], None]) -> None:
    first = tiny()
    move()
    again = tiny()
    assert executions == ["effect"]
    assert [result.cached for result in again] == [True, True, False]
    assert (store.path(again[0].bundle.digest) / "model").read_text(encoding="utf-8") == "a 1 0"
    assert tracking.client().get_run(again[0].run_id).data.tags["featherweight.computed_by"] == first[0].run_id


def test_an_object_is_found_by_its_digest_alone(move: Callable[[], None]) -> None:
    digest = tiny()[0].bundle.digest
    move()
    assert (store.path(digest) / "model").read_text(encoding="utf-8") == "a 1 0"


def test_an_object_that_was_changed_on_the_server_is_not_taken(
    move: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    made, shrunk, _ = tiny()
    for stage in (made, shrunk):
        (held,) = uploaded(stage.run_id)
        held.write_text("something else", encoding="utf-8")
    move()
    with pytest.raises(store.CorruptObjectError):
        store.path(made.bundle.digest)
    assert f"object {made.bundle.digest[:12]} cannot be had from run {made.run_id}: its digest is" in caplog.text
    again = tiny()[0]
    assert executions == ["make", "effect"], "shrink names an object that is whole again"
    assert len(uploaded(again.run_id)) == 1, "offered anew"
    assert not list((disk.home() / "store" / "tmp").iterdir())


def test_a_result_whose_upload_was_cut_off_is_not_found(move: Callable[[], None]) -> None:
    made = tiny()[0]
    tracking.client().delete_tag(made.run_id, exchange.OFFERED_TAG)
    move()
    assert not tiny()[0].cached


@pytest.mark.parametrize("how", ["no seal", "another secret", "another key", "changed", "not text"])
def test_what_a_stranger_says_of_a_cache_key_is_not_believed(
    how: str, move: Callable[[], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stranger can write to the tracking server: tags and artifacts of any run, but for the seal."""
    if how == "another secret":
        monkeypatch.setenv(exchange.SECRET, "of-another-team-altogether")
    made = tiny()[0]
    monkeypatch.setenv(exchange.SECRET, "known-to-all-workers")
    client, run = tracking.client(), tracking.Run(made.run_id)
    text = tracking.read_text(made.run_id, exchange.RESULT)
    assert text is not None
    match how:
        case "no seal":
            client.delete_tag(made.run_id, exchange.SEAL_TAG)
        case "another key":
            run.tags({exchange.SEAL_TAG: exchange._seal("0" * 64, text)})
        case "changed":
            run.text(text.replace("0.75", "0.99"), exchange.RESULT)
        case "not text":
            (held,) = uploaded(made.run_id)
            (held.parents[2] / exchange.RESULT).write_bytes(b"\xff\xfe")
    move()
    assert not tiny()[0].cached
    assert "make" in executions
    assert ("without the seal of our secret" in caplog.text) == (how != "not text")


def test_without_a_secret_a_worker_believes_itself_alone(
    move: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(exchange.SECRET)
    tiny()
    for record in (disk.home() / "store" / "records").iterdir():
        record.unlink()
    assert tiny()[0].cached
    move()
    assert not tiny()[0].cached
    monkeypatch.setenv(exchange.SECRET, "short")
    with pytest.raises(FeatherweightError, match="FEATHERWEIGHT_SECRET has 5 characters"):
        exchange._seal("key", "text")


def test_an_object_that_is_damaged_here_is_replaced_by_the_one_in_mlflow() -> None:
    made = tiny()[0]
    (store.path(made.bundle.digest) / "model").write_text("damaged", encoding="utf-8")
    store._verified.cache_clear()
    assert tiny()[0].cached
    assert (store.path(made.bundle.digest) / "model").read_text(encoding="utf-8") == "a 1 0"


def test_nothing_is_uploaded_where_the_disk_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(disk.SHARED, "true")
    made = tiny()[0]
    assert not uploaded(made.run_id)
    assert exchange.holders(made.bundle.digest) == []

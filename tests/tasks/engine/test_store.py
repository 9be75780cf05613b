"""The store: what is published is whole or not there, and what is no longer whole is never handed out."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Bundle, Scorecard, StageResult
from tasks.engine import disk, store

ROOT = Path(__file__).parents[3]


def publish(files: dict[str, str]) -> str:
    with store.workspace() as directory:
        for name, text in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(text, encoding="utf-8")
        return store.publish(directory)


def result(digest: str) -> StageResult:
    bundle = Bundle(digest=digest, format="torch", problem="text-classification")
    return StageResult(bundle=bundle, stage="train", run_id="r")


def leftovers() -> list[Path]:
    return list((disk.home() / "store" / "tmp").iterdir())


def test_published_files_are_read_back() -> None:
    digest = publish({"config.json": "{}", "tokenizer/vocab.txt": "a b"})
    assert (store.path(digest) / "tokenizer" / "vocab.txt").read_text(encoding="utf-8") == "a b"
    assert not leftovers()


def test_the_digest_is_of_names_and_contents_only() -> None:
    digest = publish({"a": "1", "b": "2"})
    assert publish({"b": "2", "a": "1"}) == digest
    assert publish({"a": "2", "b": "1"}) != digest
    assert publish({"a": "1", "c": "2"}) != digest


def test_an_exception_publishes_nothing(home: Path) -> None:
    def fail_half_way() -> None:
        with store.workspace() as directory:
            (directory / "half").write_text("half", encoding="utf-8")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert not leftovers()
    assert not (home / "store" / "objects").exists()


@pytest.mark.parametrize("damage", ["change", "remove", "listing", "truncate"])
def test_damage_is_found_quarantined_and_republished(damage: str, caplog: pytest.LogCaptureFixture) -> None:
    digest = publish({"model.safetensors": "weights", "config.json": "{}"})
    directory = store.path(digest)
    store.write_record("key", result(digest))
    match damage:
        case "change":
            (directory / "model.safetensors").write_text("weighty", encoding="utf-8")
        case "remove":
            (directory / "config.json").unlink()
        case "listing":
            (directory / store.FILES).write_text("{}", encoding="utf-8")
        case "truncate":
            os.truncate(directory / "model.safetensors", 3)
    store._verified.cache_clear()  # as another process would see it

    with caplog.at_level(logging.WARNING, "featherweight"):
        assert store.read_record("key") is None
    assert "quarantine" in caplog.text
    assert not directory.exists()
    assert len(list((disk.home() / "store" / "quarantine").glob(f"*/{digest}"))) == 1
    with pytest.raises(store.CorruptObjectError):
        store.path(digest)

    assert publish({"model.safetensors": "weights", "config.json": "{}"}) == digest
    assert store.read_record("key") == result(digest)


def test_publishing_over_a_damaged_object_mends_it() -> None:
    digest = publish({"a": "1"})
    (store.path(digest) / "a").write_text("2", encoding="utf-8")
    store._verified.cache_clear()
    assert publish({"a": "1"}) == digest
    assert (store.path(digest) / "a").read_text(encoding="utf-8") == "1"


@pytest.mark.parametrize("text", ["", "{", "{}", '{"stage": "train"}', "\x80"])
def test_a_damaged_record_is_no_record(text: str, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    store.write_record("key", result(publish({"a": "1"})))
    (home / "store" / "records" / "key.json").write_text(text, encoding="latin-1")
    assert store.read_record("key") is None
    assert "cannot reuse record" in caplog.text


@pytest.mark.parametrize(
    ("before", "after"), [('"quality": 0.75', '"quality": 0.95'), ('"run_id": "r"', '"run_id": "s"')]
)
def test_a_record_that_was_changed_is_no_record(before: str, after: str, home: Path, caplog: Any) -> None:
    digest = publish({"a": "1"})
    recorded = result(digest).model_copy(update={"scorecard": Scorecard(quality=0.75)})
    store.write_record("key", recorded)
    path = home / "store" / "records" / "key.json"
    assert store.read_record("key") == recorded
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")
    assert store.read_record("key") is None
    assert "cannot reuse record" in caplog.text
    path.with_name("other.json").write_text(text, encoding="utf-8")
    assert store.read_record("other") is None, "the result of another key"


def test_a_record_of_an_earlier_version_is_computed_again(home: Path) -> None:
    store.write_record("key", result(publish({"a": "1"})))
    path = home / "store" / "records" / "key.json"
    path.write_text(result(publish({"a": "1"})).model_dump_json(), encoding="utf-8")
    assert store.read_record("key") is None


def test_many_threads_publish_the_same() -> None:
    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(lambda _: publish({"a": "1", "b": "2" * 10_000}), range(40)))
    assert len(digests) == 1
    assert sorted(p.name for p in store.path(digests.pop()).iterdir()) == ["a", "b", store.FILES]
    assert not leftovers()


def test_readers_see_the_old_or_the_new_text(home: Path) -> None:
    path = home / "folder" / "file.txt"
    disk.write_atomically(path, "0" * 100_000)
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(lambda: [disk.write_atomically(path, str(i % 10) * 100_000) for i in range(50)])
        while not writing.done():
            text = path.read_text(encoding="utf-8")
            assert len(text) == 100_000
            assert len(set(text)) == 1
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


HOLDER = """
import sys, time
from tasks.engine import disk, store
with disk.lock("key"), store.workspace() as directory:
    (directory / "half").write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_lets_go_and_is_swept() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        store.sweep()
        assert len(leftovers()) == 1, "a living process keeps its work"
        with ThreadPoolExecutor(1) as pool:

            def take() -> float:
                with disk.lock("key"):
                    return time.monotonic()

            waiting = pool.submit(take)
            time.sleep(0.2)
            assert not waiting.done()
            killed = time.monotonic()
            os.kill(holder.pid, signal.SIGKILL)
            assert waiting.result(timeout=10) >= killed
    finally:
        holder.kill()
        holder.wait()
    store.sweep()
    assert not leftovers()


@pytest.mark.parametrize("digest", ["", "..", "../..", "a" * 63, "A" * 64, "a" * 64 + "\n", "a" * 63 + "/"])
def test_a_digest_is_no_path(digest: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    for one in (digest, str(precious), f"../../../{precious.name}"):
        with pytest.raises(store.CorruptObjectError, match="is no digest of a stored object"):
            store.path(one)
        with pytest.raises(ValueError, match="should match pattern"):
            Bundle(digest=one, format="torch", problem="text-classification")
    assert precious.is_dir()


def test_a_sweep_ends_no_run_whatever_lies_there(tmp_path: Path) -> None:
    tmp = disk.folder("tmp")
    (tmp / "stray").write_text("a file", encoding="utf-8")
    (tmp / "link").symlink_to(tmp_path)
    (tmp / "dangling").symlink_to(tmp_path / "nothing")
    (tmp / "left" / "inner").mkdir(parents=True)
    store.sweep()
    assert not leftovers()
    assert tmp_path.is_dir()


def test_a_sweep_does_not_mind_workspaces_that_end_meanwhile() -> None:
    def work(number: int) -> None:
        for turn in range(25):
            with store.workspace() as directory:
                (directory / "a").write_text(f"{number} {turn % 5}", encoding="utf-8")
                if turn % 2:
                    store.publish(directory)

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, number) for number in range(3)]
        while not all(one.done() for one in working):
            store.sweep()
        for one in working:
            one.result()
    assert not leftovers()


def test_an_entry_that_vanishes_under_a_sweep_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (disk.folder("tmp") / name).mkdir()
    opened = os.open

    def vanishing(path: object, *arguments: int) -> int:
        if Path(str(path)).name in ("one", "two"):
            Path(str(path)).rmdir()
        return opened(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", vanishing)
    store.sweep()


def test_what_a_full_disk_says_is_known_wherever_it_is_said() -> None:
    error = RuntimeError("the database says no")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device", "/home/a")
    assert disk.trouble(error) == "/home/a: No space left on device; free some space, or mend the disk"
    assert disk.trouble(OSError(errno.ENOENT, "No such file", "data.csv")) == ""
    with sqlite3.connect(":memory:") as db:
        db.execute("pragma max_page_count = 1")
        with pytest.raises(sqlite3.OperationalError) as caught:
            db.executescript("create table a (b); create table c (d); create table e (f); create table g (h);")
    assert "database or disk is full" in disk.trouble(caught.value)


@pytest.mark.parametrize("said", ["a?b", "a/b?c=d"])
def test_a_home_that_databases_would_misread_is_refused(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATHERWEIGHT_HOME", str(tmp_path / said))
    with pytest.raises(disk.HomeError, match="may have no"):
        disk.home()


def test_an_empty_home_is_the_default_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATHERWEIGHT_HOME", "")
    assert disk.home() == Path("~/.featherweight").expanduser()
    monkeypatch.setenv("FEATHERWEIGHT_HOME", "~nobody-of-this-name/home")
    with pytest.raises(disk.HomeError, match="no such user"):
        disk.home()


def test_a_home_is_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATHERWEIGHT_HOME", str(tmp_path / "new" / "home"))
    disk.folder("objects")
    assert (tmp_path / "new" / "home").stat().st_mode & 0o777 == 0o700


def test_a_home_of_an_earlier_version_is_closed_and_no_other_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(name: str, mode: int, *, is_home: bool = True) -> int:
        path = tmp_path / name
        (path / "store" if is_home else path).mkdir(parents=True)
        path.chmod(mode)
        monkeypatch.setenv("FEATHERWEIGHT_HOME", str(path))
        disk.made()
        return path.stat().st_mode & 0o7777

    assert opened("old", 0o755) == 0o700
    assert opened("empty", 0o755, is_home=False) == 0o755
    assert opened("common", 0o1777) == 0o1777
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert opened("another user's", 0o755) == 0o755


def test_a_home_that_cannot_be_closed_is_used_as_it_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.folder("objects")
    home.chmod(0o755)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    assert disk.made("logs").is_dir()


def test_too_little_disk_says_how_much() -> None:
    with pytest.raises(FeatherweightError, match=r"not enough disk: .* MB free and this run needs 1000000000 MB"):
        disk.require_free_space(10**15)


def test_a_published_directory_lists_its_files() -> None:
    digest = publish({"a": "1"})
    listing = json.loads((store.path(digest) / store.FILES).read_text(encoding="utf-8"))
    assert list(listing) == ["a"]

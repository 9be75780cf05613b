"""The store: what is published is whole or not there, and what is no longer whole is never handed out."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks import disk, store
from tasks.contracts import Bundle, FeatherweightError, StageResult

ROOT = Path(__file__).parent.parent.parent


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
from tasks import disk, store
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


def test_too_little_disk_says_how_much() -> None:
    with pytest.raises(FeatherweightError, match=r"not enough disk: .* MB free and this run needs 1000000000 MB"):
        disk.require_free_space(10**15)


def test_a_published_directory_lists_its_files() -> None:
    digest = publish({"a": "1"})
    listing = json.loads((store.path(digest) / store.FILES).read_text(encoding="utf-8"))
    assert list(listing) == ["a"]

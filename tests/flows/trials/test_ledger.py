"""The ledger: every point once, nothing forgotten after a kill, and a torn line that is cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.trials import ledger
from flows.trials.ledger import Asked, Ledger, SamplerName
from flows.trials.space import Point, Space

ROOT = Path(__file__).parents[3]
SPACE = Space({"pruning.keep_ffn": (0.25, 0.5, 1.0), "quantization.embeddings": ("int8", "int4")})
FIRST: Point = {"pruning.keep_ffn": 0.5, "quantization.embeddings": "int4"}


def opened(folder: Path, sampler: SamplerName = SamplerName.TPE) -> Ledger:
    return Ledger(folder / "search.journal", SPACE, sampler=sampler, seed=1)


def close(asked: Asked) -> None:
    size = asked.point["pruning.keep_ffn"]
    asked.finished({"number": asked.number, "changes": asked.point}, (1 - size, size), {"drop": 0.3 - size})


@pytest.mark.parametrize("sampler", SamplerName)
def test_every_point_is_asked_for_once_until_none_is_left(tmp_path: Path, sampler: SamplerName) -> None:
    book, seen = opened(tmp_path, sampler), []
    while asked := book.ask(FIRST):
        seen.append(asked.point)
        close(asked)
    assert seen[0] == FIRST
    assert sorted(map(json.dumps, seen)) == sorted(map(json.dumps, SPACE.points()))
    assert [record["number"] for record in book.records()] == list(range(1, 7))
    assert [record["changes"] for record in opened(tmp_path, sampler).records()] == seen
    assert opened(tmp_path, sampler).ask(FIRST) is None


def test_what_goes_on_after_a_kill_is_what_would_have_come(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    book = opened(whole)
    expected = []
    for _ in range(5):
        asked = book.ask(FIRST)
        assert asked is not None
        expected.append(asked.point)
        close(asked)
    found = []
    for _ in range(5):
        asked = opened(parts).ask(FIRST)  # a new process each time
        assert asked is not None
        found.append(asked.point)
        close(asked)
    assert found == expected


def test_an_interrupted_trial_goes_on_with_its_values_and_its_run(tmp_path: Path) -> None:
    asked = opened(tmp_path).ask(FIRST)
    assert asked is not None
    asked.belongs_to("c0ffee")
    (again,) = opened(tmp_path).interrupted()
    assert (again.point, again.number, again.run_id) == (asked.point, asked.number, "c0ffee")
    close(again)
    assert list(opened(tmp_path).interrupted()) == []
    assert len(opened(tmp_path).records()) == 1


def test_trials_given_up_or_failed_are_not_asked_for_again(tmp_path: Path) -> None:
    book = opened(tmp_path)
    for number in range(1, 4):
        asked = book.ask()
        assert asked is not None
        (asked.given_up if number % 2 else asked.failed)({"number": number})
    assert len(book.records()) == 3
    rest = 0
    while asked := book.ask():
        rest += 1
        close(asked)
    assert rest == 3


def test_the_test_split_is_remembered_to_have_been_shown(tmp_path: Path) -> None:
    assert opened(tmp_path).tested([3, 1]) == [1, 3]
    assert opened(tmp_path).tested([2, 3]) == [1, 2, 3]


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    asked = opened(tmp_path).ask(FIRST)
    assert asked is not None
    close(asked)
    journal = tmp_path / "search.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "study')
    assert len(opened(tmp_path).records()) == 1
    assert journal.read_bytes().startswith(whole)
    assert opened(tmp_path).ask() is not None


def test_the_journal_is_json_and_no_pickle(tmp_path: Path) -> None:
    asked = opened(tmp_path, SamplerName.NSGA2).ask(FIRST)
    assert asked is not None
    close(asked)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"search.journal"}
    for line in (tmp_path / "search.journal").read_text(encoding="utf-8").splitlines():
        assert isinstance(json.loads(line), dict)


HOLDER = """
import sys, time
from pathlib import Path
from flows.trials import ledger
from tests.flows.trials.test_ledger import SPACE
with ledger.opened(Path(sys.argv[1]), SPACE, sampler=ledger.SamplerName.TPE, seed=1) as book:
    book.ask()
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_ledger_is_one_process_alone_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "search.journal"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with ThreadPoolExecutor(1) as pool:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"

            def take() -> int:
                with ledger.opened(path, SPACE, sampler=SamplerName.TPE, seed=1) as book:
                    return len(list(book.interrupted()))

            waiting = pool.submit(take)
            time.sleep(0.5)
            assert not waiting.done()
        finally:
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
        assert waiting.result(timeout=10) == 1

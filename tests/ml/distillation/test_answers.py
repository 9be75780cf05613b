from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.ml.distillation import answers, limits

KINDS = [answers.Kind("logits", per_text=8), answers.Kind("hidden-1", per_token=16)]
ROWS = [[2, 5, 3], [2, 6, 7, 3], [2, 8, 3]]
LENGTHS = {answers.key(row): len(row) for row in ROWS}


def said(row: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(row[1])
    return [torch.randn(1, 2, generator=generator), torch.randn(len(row), 8, generator=generator).bfloat16()]


def opened(directory: Path | None, setting: str = "cpu-float32") -> answers.Memory:
    memory = answers.Memory(directory)
    memory.open(setting, KINDS, LENGTHS)
    return memory


def fill(directory: Path | None, rows: list[list[int]] = ROWS, setting: str = "cpu-float32") -> answers.Memory:
    memory = opened(directory, setting)
    for row in rows:
        memory.put({memory.key(row): said(row)})
    memory.publish()
    return memory


def known(memory: answers.Memory) -> list[bool]:
    return [memory.get(memory.key(row)) is not None for row in ROWS]


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def test_another_process_reads_the_same_bits(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    found = opened(tmp_path / "a")
    for row in ROWS:
        parts = found.get(found.key(row))
        assert parts is not None
        assert all(torch.equal(part, expected) for part, expected in zip(parts, said(row), strict=True))


def test_without_a_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert known(fill(None)) == [True] * 3
    assert files(tmp_path) == []


def test_a_text_is_published_once(tmp_path: Path) -> None:
    fill(tmp_path / "a", ROWS[:2])
    before = files(tmp_path)
    fill(tmp_path / "a", ROWS[:2])
    assert files(tmp_path) == before
    fill(tmp_path / "a")
    assert len(files(tmp_path)) == len(before) + len(KINDS)
    assert known(opened(tmp_path / "a")) == [True] * 3


def test_answers_of_another_precision_or_teacher_are_others(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    assert known(opened(tmp_path / "a", "cpu-bfloat16")) == [False] * 3
    assert known(opened(tmp_path / "b")) == [False] * 3


def test_changed_files_are_not_believed_and_go(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    [hidden] = files(tmp_path / "a" / "cpu-float32" / "hidden-1")
    content = bytearray(hidden.read_bytes())
    content[-1] ^= 1
    hidden.write_bytes(content)
    assert known(opened(tmp_path / "a")) == [False] * 3
    assert not hidden.exists()
    fill(tmp_path / "a")
    assert known(opened(tmp_path / "a")) == [True] * 3


def test_what_is_not_whole_is_no_answer(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "cpu-float32" / "hidden-1" / ".killed"
    folder.mkdir(parents=True)
    (folder / "answers").write_bytes(b"half")
    assert known(opened(tmp_path / "a")) == [False] * 3


def test_the_first_kinds_are_kept_on_disk_as_far_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "answers_on_disk", lambda: 3 * 8)
    memory = fill(tmp_path / "a")
    assert known(memory) == [True] * 3  # the rest is in memory
    assert [path.parent.name for path in files(tmp_path)] == ["logits"]
    monkeypatch.setattr(answers, "LARGEST_IN_MEMORY", 0)
    assert known(fill(tmp_path / "b")) == [False] * 3


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate("abc"):
        fill(tmp_path / name)
        for path in files(tmp_path / name):
            os.utime(path, (1000 + age, 1000 + age))
    per_teacher = sum(path.stat().st_size for path in files(tmp_path / "a"))
    opened(tmp_path / "a")  # used again
    monkeypatch.setattr(limits, "answers_on_disk", lambda: 2 * per_teacher)
    answers.trim(tmp_path, 2 * per_teacher)
    assert [len(files(tmp_path / name)) for name in "abc"] == [2, 0, 2]
    fill(tmp_path / "d")
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 3 * per_teacher
    assert known(opened(tmp_path / "d")) == [True] * 3


def test_a_full_disk_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(answers, "save_file", full)
    assert known(fill(tmp_path / "a")) == [True] * 3
    assert files(tmp_path) == []

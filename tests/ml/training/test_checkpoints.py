from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from tasks.ml.training.checkpoints import WHOLE, Checkpoints


def test_the_newest_is_read_and_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.newest() is None
    for step in (9, 10, 100):
        checkpoints.save(step, {"w": torch.full((2,), step)}, {"note": f"at {step}"})
    saved = checkpoints.newest()
    assert saved is not None
    assert (saved.state["step"], saved.state["note"]) == (100, "at 100")
    tensors = {"w": torch.zeros(2, dtype=torch.int64)}
    saved.read(tensors)
    assert torch.equal(tensors["w"], torch.tensor([100, 100]))
    assert len(list((tmp_path / "new").iterdir())) == 4


@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped", "no JSON"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"w": torch.full((64,), step)}, {})
    path = tmp_path / "step-000000002" / WHOLE
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "no JSON":
        path.parent.with_suffix(".json").write_text("{")
    else:
        path.write_bytes(content[:-8] if damage == "truncated" else content[:-1] + b"\x07")
    saved = checkpoints.newest()
    assert saved is not None
    assert saved.state["step"] == 1
    tensors = {"w": torch.zeros(64, dtype=torch.int64)}
    saved.read(tensors)
    assert torch.equal(tensors["w"], torch.ones(64, dtype=torch.int64))


def test_what_never_counted_goes_with_the_next_save(tmp_path: Path) -> None:
    (tmp_path / "step-000000001").mkdir()
    assert Checkpoints(tmp_path).newest() is None
    Checkpoints(tmp_path).save(2, {"w": torch.zeros(1)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000002", "step-000000002.json"]


def test_a_tensor_that_is_missing_or_of_another_shape_is_an_error(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(1, {"w": torch.zeros(2)}, {})
    saved = Checkpoints(tmp_path).newest()
    assert saved is not None
    for wanted in ({"v": torch.zeros(2)}, {"w": torch.zeros(3)}):
        with pytest.raises(CheckpointException, match="checkpoint"):
            saved.read(wanted)


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    weight = torch.randn(3, 3)
    Checkpoints(tmp_path).save(1, {"a": weight, "b": weight, "c": weight.T}, {})
    saved = Checkpoints(tmp_path).newest()
    assert saved is not None
    tensors = {name: torch.zeros(3, 3) for name in "abc"}
    saved.read(tensors)
    for name, expected in {"a": weight, "b": weight, "c": weight.T}.items():
        assert torch.equal(tensors[name], expected)

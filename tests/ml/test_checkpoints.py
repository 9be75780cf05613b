from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks.ml.checkpoints import Checkpoints


def test_the_newest_is_read_and_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.newest() is None
    for step in (9, 10, 100):
        checkpoints.save(step, {"w": torch.full((2,), step)}, {"note": f"at {step}"})
    state, tensors = checkpoints.newest() or ({}, {})
    assert (state["step"], state["note"]) == (100, "at 100")
    assert torch.equal(tensors["w"], torch.tensor([100, 100]))
    assert len(list((tmp_path / "new").iterdir())) == 4


@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped", "no JSON"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"w": torch.full((64,), step)}, {})
    path = tmp_path / "step-000000002.safetensors"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "no JSON":
        path.with_suffix(".json").write_text("{")
    else:
        path.write_bytes(content[:-8] if damage == "truncated" else content[:-1] + b"\x07")
    state, tensors = checkpoints.newest() or ({}, {})
    assert state["step"] == 1
    assert torch.equal(tensors["w"], torch.ones(64))


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    weight = torch.randn(3, 3)
    Checkpoints(tmp_path).save(1, {"a": weight, "b": weight, "c": weight.T}, {})
    _, tensors = Checkpoints(tmp_path).newest() or ({}, {})
    for name, expected in {"a": weight, "b": weight, "c": weight.T}.items():
        assert torch.equal(tensors[name], expected)

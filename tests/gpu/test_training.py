"""Training on a GPU: every choice that exists there only, on a tiny model. ``pytest -m gpu``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.data import batching
from tasks.ml.data.datasets import Split
from tasks.ml.jobs.lessons import Lesson
from tasks.ml.training import offload, optimizers, trainer
from tests.tasks import tiny_models

pytestmark = pytest.mark.gpu

FOR_MODEL = {"embeddings": "dense", "activation_checkpointing": False, "lora_rank": 0}
FOR_TRAINER: dict[str, Any] = {
    "epochs": 8, "batch_size": 8, "learning_rate": 2e-3, "schedule": "linear", "warmup": 0.1, "weight_decay": 0.01,
    "clip_norm": 1.0, "precision": "fp32", "seed": 0, "optimizer": "adamw",
}  # fmt: skip


class Unseen:
    def start(self, *, total_steps: int, first_step: int) -> None: ...
    def step(self, step: int, point: Any) -> None: ...
    def evaluation(self, step: int, point: Any) -> None: ...


def lesson() -> Lesson:
    """203 rows of random tokens, whose label is the parity of the second one."""
    rng = np.random.default_rng(0)
    ids = [[2, *rng.integers(4, 20, rng.integers(1, 9)).tolist(), 3] for _ in range(203)]
    targets = np.array([row[1] % 2 for row in ids])
    return Lesson(tiny_models.PROBLEM, 0, ids, targets, Split([""] * 40, ids[:40], targets[:40]))


def learn(**changes: Any) -> tuple[nn.Module, trainer.History]:
    trainer.seed_everything(0)
    model = tiny_models.model().to(trainer.default_device())
    history = lesson().learn(model, for_model=FOR_MODEL, observer=Unseen(), **FOR_TRAINER | changes)
    losses = [point["loss"] for point in history.points]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert all(0 < point["flops_utilization"] <= 1 for point in history.points)
    return model, history


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16", "auto"])
def test_it_learns_in_every_precision(precision: str) -> None:
    model, _ = learn(precision=precision)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_it_learns_in_fp8_where_there_is_any() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        with pytest.raises(FeatherweightError, match="precision: fp8 needs an NVIDIA GPU"):
            learn(precision="fp8")
        return
    model, history = learn(precision="fp8")
    assert history.notes["precision"].startswith("fp8")
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_offloading_the_optimizer_changes_where_its_state_is_and_not_what_is_learned(tmp_path: Path) -> None:
    plain, _ = learn()
    offloaded, history = learn(offload_optimizer=True, checkpoint=tmp_path)
    assert history.notes["optimizer_offload"] == "state in the host's memory"
    for a, b in zip(plain.parameters(), offloaded.parameters(), strict=True):
        assert b.device.type == "cuda"
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
    assert learn(offload_optimizer=True, precision="fp16")[1].notes["optimizer_state_mb"] > 0


def test_offloaded_state_is_on_the_host_only() -> None:
    model = nn.Linear(1024, 1024, device="cuda")
    algorithm = optimizers.build(model, "adamw", learning_rate=1e-3, weight_decay=0.0)
    offload.to_host(algorithm)
    before = torch.cuda.memory_allocated()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    algorithm.step(torch.amp.GradScaler("cuda", enabled=False))
    torch.cuda.synchronize()
    assert {tensor.device.type for tensor in algorithm.tensors().values()} == {"cpu"}
    assert torch.cuda.memory_allocated() <= before


def test_a_batch_reaches_the_gpu_without_anybody_waiting() -> None:
    rows, device = [[5, 6, 7], [8]], torch.device("cuda")
    expected = batching.collate(rows, pad_id=1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = batching.collate(rows, pad_id=1, device=device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(found, expected, strict=True):
        assert a.device.type == "cuda"
        assert torch.equal(a.cpu(), b)

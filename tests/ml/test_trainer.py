from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tasks.ml import precision, trainer


class Recorder:
    def __init__(self, stop_after: int | None = None) -> None:
        self.steps: list[int] = []
        self.evaluations: list[int] = []
        self.first_step = -1
        self.stop_after = stop_after

    def start(self, *, total_steps: int, first_step: int) -> None:
        self.first_step = first_step

    def step(self, step: int, point: Mapping[str, float]) -> None:
        self.steps.append(step)
        if step == self.stop_after:
            raise KeyboardInterrupt

    def evaluation(self, step: int, point: Mapping[str, float]) -> None:
        self.evaluations.append(step)


class Regression:
    """y = x · w on fixed data, learned by a linear layer with dropout: everything a run's state consists of."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(64, 5, generator=generator)
        self.y = self.x @ torch.randn(5, 1, generator=generator)
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Dropout(0.2), nn.Linear(5, 1))

    def loss(self, rows: list[int]) -> tuple[torch.Tensor, dict[str, float]]:
        return (self.model(self.x[rows]) - self.y[rows]).square().mean(), {}

    def evaluate(self) -> dict[str, float]:
        self.model.eval()
        with torch.no_grad():
            loss = (self.model(self.x) - self.y).square().mean().item()
        return {"accuracy": 0.0, "loss": loss}

    def fit(self, observer: Recorder, **changes: Any) -> trainer.History:
        options: dict[str, Any] = {
            "lengths": [1 + row % 7 for row in range(64)],
            "evaluate": self.evaluate,
            "epochs": 6,
            "batch_size": 8,
            "learning_rate": 0.1,
            "schedule": "linear",
            "warmup": 0.1,
            "weight_decay": 0.0,
            "clip_norm": 1.0,
            "precision": "fp32",
            "seed": 0,
            "observer": observer,
        }
        return trainer.fit(self.model, self.loss, **options | changes)


def test_it_learns_and_records() -> None:
    task, observer = Regression(), Recorder()
    before = task.evaluate()["loss"]
    history = task.fit(observer)
    assert task.evaluate()["loss"] < 0.05 * before
    assert observer.steps == list(range(1, 49))
    assert observer.evaluations == [8, 16, 24, 32, 40, 48]
    assert len(history.points) == 48
    assert history.notes["precision"] == "fp32 (as asked)"


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = Regression()
    whole.fit(Recorder())
    broken = Regression()
    with pytest.raises(KeyboardInterrupt):
        broken.fit(Recorder(stop_after=29), checkpoint=tmp_path)
    again, observer = Regression(), Recorder()
    history = again.fit(observer, checkpoint=tmp_path)
    assert observer.first_step == 24
    assert history.notes["resumed_at_step"] == 24
    assert [point["step"] for point in history.points] == list(range(1, 49))
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_best_weights_are_kept_and_patience_stops() -> None:
    task, observer = Regression(), Recorder()
    scores = iter([0.5, 0.9, 0.7, 0.6, 0.8, 0.8])
    kept: list[torch.Tensor] = []

    def evaluate() -> dict[str, float]:
        kept.append(task.model[1].weight.detach().clone())
        return {"accuracy": next(scores), "loss": 1.0}

    history = task.fit(observer, evaluate=evaluate, patience=2)
    assert history.notes["stopped_early_at_step"] == 32
    assert torch.equal(task.model[1].weight, kept[1])
    assert not torch.equal(kept[1], kept[3])


def test_of_evaluations_that_differ_by_noise_the_latest_is_kept() -> None:
    task = Regression()
    scores = iter([0.80, 0.85, 0.845, 0.82])
    kept: list[torch.Tensor] = []

    def evaluate() -> dict[str, float]:
        kept.append(task.model[1].weight.detach().clone())
        return {"accuracy": next(scores), "standard_error": 0.01, "loss": 1.0}

    task.fit(Recorder(), evaluate=evaluate, epochs=4)
    assert torch.equal(task.model[1].weight, kept[2])


def test_a_loss_that_is_not_finite_stops_with_advice() -> None:
    task = Regression()
    task.x[3] = float("nan")
    with pytest.raises(FloatingPointError, match="loss is nan at step 0; lower the learning rate"):
        task.fit(Recorder(), batch_size=64)


def test_frozen_parameters_stay() -> None:
    task = Regression()
    task.model[1].weight.requires_grad_(False)
    before = task.model[1].weight.clone()
    task.fit(Recorder(), epochs=1)
    assert torch.equal(task.model[1].weight, before)
    assert task.model[1].bias.abs().sum() > 0


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_learning_rate_rises_then_falls_to_zero(schedule: str) -> None:
    factors = [trainer.learning_rate_factor(s, 100, warmup=0.1, schedule=schedule) for s in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert factors[100] == pytest.approx(0.0, abs=1e-9)


def test_precision_auto_says_what_it_measured() -> None:
    choice = precision.choose("auto", torch.device("cpu"))
    assert choice.autocast in (None, torch.bfloat16)
    assert "GFLOP/s" in choice.reason
    assert precision.choose("bf16", torch.device("cpu")).autocast is torch.bfloat16

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.training import memory, precision, trainer
from tasks.ml.training.checkpoints import WHOLE, Checkpoints


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


class MeanOfRows:
    """A ``StepLoss`` of a function that gives the mean over some rows."""

    def __init__(self, mean: Callable[[list[int]], tuple[torch.Tensor, dict[str, torch.Tensor]]]) -> None:
        self.mean = mean

    def amounts(self, parts: Sequence[list[int]]) -> torch.Tensor:
        return torch.tensor([sum(map(len, parts))], dtype=torch.float64)

    def __call__(self, rows: list[int], whole: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        value, parts = self.mean(rows)
        return value * (len(rows) / whole.item()), parts


class Regression:
    """y = x · w on fixed data, learned by a linear layer with dropout: everything a run's state consists of."""

    def __init__(self, *, dropout: float = 0.2) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(64, 5, generator=generator)
        self.y = self.x @ torch.randn(5, 1, generator=generator)
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Dropout(dropout), nn.Linear(5, 1))
        self.learn = self.loss

    def loss(self, rows: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return (self.model(self.x[rows]) - self.y[rows]).square().mean(), {}

    def evaluate(self) -> dict[str, float]:
        self.model.eval()
        with torch.no_grad():
            loss = (self.model(self.x) - self.y).square().mean().item()
        return {"quality": 0.0, "loss": loss}

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
        options |= changes
        options["precision"] = precision.choose(options["precision"], torch.device("cpu"))
        return trainer.fit(self.model, MeanOfRows(self.learn), **options)


def test_it_learns_and_records() -> None:
    task, observer = Regression(), Recorder()
    before = task.evaluate()["loss"]
    history = task.fit(observer)
    assert task.evaluate()["loss"] < 0.05 * before
    assert observer.steps == list(range(1, 49))
    assert observer.evaluations == [8, 16, 24, 32, 40, 48]
    assert len(history.points) == 48
    seconds = [evaluation["training_s"] for evaluation in history.evaluations]
    assert seconds[0] > 0
    assert seconds == sorted(seconds)
    assert seconds[-1] == history.notes["training_s"]
    assert history.notes["precision"] == "fp32 (as asked)"


@pytest.mark.parametrize("optimizer", ["adamw", "schedule-free-adamw"])
@pytest.mark.parametrize("compile", ["off", "auto"])
def test_no_steps_are_taken_where_none_are_asked_for(optimizer: str, compile: str) -> None:
    task, observer = Regression(), Recorder()
    before = [parameter.clone() for parameter in task.model.parameters()]
    history = task.fit(observer, steps=0, optimizer=optimizer, compile=compile)
    for a, b in zip(before, task.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not task.model.training
    assert (observer.first_step, observer.steps, observer.evaluations) == (0, [], [])
    assert history.points == history.evaluations == []
    assert (history.notes["total_steps"], history.notes["training_s"]) == (0, 0.0)


def test_steps_say_how_long_whatever_the_epochs() -> None:
    observer = Recorder()
    Regression().fit(observer, steps=11, epochs=1)
    assert observer.steps == list(range(1, 12))


@pytest.mark.parametrize(("saves_every", "resumed_at"), [(trainer.SAVES_EVERY, 24), (0.0, 28)])
@pytest.mark.parametrize("optimizer", ["adamw", "schedule-free-adamw"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, saves_every: float, resumed_at: int, optimizer: str
) -> None:
    whole = Regression()
    whole.fit(Recorder(), optimizer=optimizer)
    broken = Regression()
    with pytest.raises(KeyboardInterrupt):
        broken.fit(Recorder(stop_after=29), checkpoint=tmp_path, saves_every=saves_every, optimizer=optimizer)
    again, observer = Regression(), Recorder()
    torch.manual_seed(99)
    history = again.fit(observer, checkpoint=tmp_path, optimizer=optimizer)
    assert observer.first_step == resumed_at
    assert history.notes["resumed_at_step"] == resumed_at
    assert [point["step"] for point in history.points] == list(range(1, 49))
    seconds = [evaluation["training_s"] for evaluation in history.evaluations]
    assert seconds == sorted(seconds), "seconds before the interruption count"
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_best_weights_are_kept_and_patience_stops() -> None:
    task, observer = Regression(), Recorder()
    scores = iter([0.5, 0.9, 0.7, 0.6, 0.8, 0.8])
    kept: list[torch.Tensor] = []

    def evaluate() -> dict[str, float]:
        kept.append(task.model[1].weight.detach().clone())
        return {"quality": next(scores), "loss": 1.0}

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
        return {"quality": next(scores), "standard_error": 0.01, "loss": 1.0}

    task.fit(Recorder(), evaluate=evaluate, epochs=4)
    assert torch.equal(task.model[1].weight, kept[2])


def test_a_loss_that_is_not_finite_stops_with_advice() -> None:
    task = Regression()
    task.x[3] = float("nan")
    with pytest.raises(FloatingPointError, match="loss is nan at step 0; lower the learning rate"):
        task.fit(Recorder(), batch_size=64)


def test_a_gradient_that_is_not_finite_is_named_and_the_newest_checkpoint_is_of_before_it(tmp_path: Path) -> None:
    task = Regression()
    calls = iter(range(100))

    def loss(rows: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        value, parts = task.loss(rows)
        # A root at zero: the loss is finite, its slope is not.
        return (value + (0 * task.model[1].bias).abs().sum().sqrt() if next(calls) == 20 else value), parts

    task.learn = loss
    with pytest.raises(
        FloatingPointError, match=r"gradient of 1\.bias is not finite at step 20; lower the learning rate"
    ):
        task.fit(Recorder(), checkpoint=tmp_path)
    saved = Checkpoints(tmp_path).newest()
    assert saved is not None
    assert saved.state["step"] == 16
    tensors = load_file(saved.directory / WHOLE)
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


@pytest.mark.parametrize(("most", "rows"), [(15, 8), (9, 8), (5, 4), (1, 1)])
def test_micro_batches_have_the_gradient_of_the_whole_batch(most: int, rows: int) -> None:
    assert memory.evenly(16, most) == rows
    whole = Regression(dropout=0.0)
    whole.fit(Recorder(), batch_size=16)
    for micro_batch in (most, rows):
        cut = Regression(dropout=0.0)
        cut.fit(Recorder(), batch_size=16, micro_batch=micro_batch)
        for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
            torch.testing.assert_close(a, b)


def test_batches_of_a_token_budget_learn_and_go_on_where_they_were(tmp_path: Path) -> None:
    whole, sizes = Regression(), []

    def loss(rows: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        sizes.append(len(rows))
        assert len(rows) * max(1 + row % 7 for row in rows) <= 28
        return Regression.loss(whole, rows)

    whole.learn = loss
    before = whole.evaluate()["loss"]
    history = whole.fit(Recorder(), batch_tokens=28)
    assert whole.evaluate()["loss"] < 0.05 * before
    assert sum(sizes) == 6 * 64
    assert len(set(sizes)) > 2
    assert history.notes["micro_batch"] == max(sizes)
    assert history.evaluations[-1]["epoch"] == 6
    broken = Regression()
    with pytest.raises(KeyboardInterrupt):
        broken.fit(Recorder(stop_after=29), batch_tokens=28, checkpoint=tmp_path)
    again, observer = Regression(), Recorder()
    again.fit(observer, batch_tokens=28, checkpoint=tmp_path)
    assert 0 < observer.first_step < 30
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_row_that_does_not_fit_into_the_budget_is_named_before_any_work() -> None:
    observer = Recorder()
    with pytest.raises(FeatherweightError, match="batch_size: a row of 7 tokens does not fit into 6; the least is 7"):
        Regression().fit(observer, batch_tokens=6)
    assert observer.first_step == -1


def test_out_of_memory_halves_the_micro_batch_once_and_keeps_the_batch() -> None:
    whole, short = Regression(dropout=0.0), Regression(dropout=0.0)
    largest: list[int] = []

    def loss(rows: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        largest.append(len(rows))
        if len(rows) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Regression.loss(short, rows)

    short.learn = loss
    history = short.fit(Recorder(), batch_size=16)
    assert largest[:3] == [16, 8, 8]
    assert history.notes["micro_batch"] == 8
    whole.fit(Recorder(), batch_size=16)
    for a, b in zip(whole.model.parameters(), short.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    again = Regression()
    again.learn = loss
    with pytest.raises(torch.OutOfMemoryError):
        again.fit(Recorder(), batch_size=64)


def test_fp16_scales_the_loss_and_leaves_out_steps_that_overflow() -> None:
    task = Regression()
    history = task.fit(Recorder(), precision="fp16")
    assert history.notes["precision"] == "fp16 autocast with loss scaling (as asked)"
    assert task.evaluate()["loss"] < 0.1


def test_tf32_is_refused_where_there_is_none() -> None:
    with pytest.raises(FeatherweightError, match="tf32 needs an NVIDIA GPU of Ampere or later, and this is a CPU"):
        precision.choose("tf32", torch.device("cpu"))


def test_measuring_the_machine_draws_no_numbers_that_others_would_have_drawn() -> None:
    before = torch.get_rng_state()
    precision.matmul_rate.cache_clear()
    assert precision.matmul_rate("cpu", torch.float32, 0.01) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_offloading_on_a_cpu_is_noted_as_nothing() -> None:
    notes = Regression().fit(Recorder(), epochs=1, offload_optimizer=True).notes
    assert notes["optimizer_offload"] == "none: on a CPU the state is in the host's memory anyway"


def test_curves_hold_speed_memory_and_the_size_of_gradients() -> None:
    point = Regression().fit(Recorder()).points[-1]
    assert set(point) == {
        "step", "epoch", "loss", "learning_rate", "gradient_norm", "samples_per_s", "tokens_per_s",
        "flops_utilization", "peak_memory_mb",
    }  # fmt: skip
    assert point["gradient_norm"] > 0
    assert 0 < point["flops_utilization"] < 1
    assert 50 < point["peak_memory_mb"] < 100_000


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

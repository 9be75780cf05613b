"""The training loop that every stage shares: fused AdamW, warm-up and decay, clipping, length buckets, early stopping,
checkpoints that resume. What is learned, and from what, is the caller's ``step_loss``.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tasks.ml import batching
from tasks.ml.precision import choose as choose_precision

POINTS_PER_RUN = 200
"""Resolution of the recorded learning curves."""

StepLoss = Callable[[list[int]], tuple[torch.Tensor, Mapping[str, float]]]
"""From row indices to the loss and the named parts to record."""


class Observer(Protocol):
    """Watches a run: a progress bar, a tracker."""

    def start(self, *, total_steps: int, first_step: int) -> None: ...
    def step(self, step: int, point: Mapping[str, float]) -> None: ...
    def evaluation(self, step: int, point: Mapping[str, float]) -> None: ...


@dataclass
class History:
    """What happened: points of the training loss, evaluations, and notes such as the precision and why."""

    points: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def seed_everything(seed: int) -> None:
    """Seeds torch on every device; Python's and NumPy's global generators are not used."""
    torch.manual_seed(seed)


def default_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def learning_rate_factor(step: int, total: int, *, warmup: float, schedule: str) -> float:
    """Multiplier of the peak learning rate at a step: linear warm-up, then linear or cosine decay to zero."""
    rising = max(1, round(total * warmup)) if warmup > 0 else 0
    if step < rising:
        return (step + 1) / rising
    progress = (step - rising) / max(1, total - rising)
    return 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decays matrices only: biases and norms have no over-fitting capacity worth decaying."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


class _Checkpoint:
    """Everything a run needs to go on: safetensors and JSON, replaced atomically (the JSON last)."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory

    def save(
        self,
        step: int,
        model: nn.Module,
        best: Mapping[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
        history: History,
        progress: Mapping[str, Any],
    ) -> None:
        if self.directory is None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items()}
        tensors |= {f"best.{k}": v.contiguous() for k, v in best.items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v.contiguous() for k, v in state.items()}
        tensors["random"] = torch.get_rng_state()
        name = f"step-{step}.safetensors"
        # Model tensors may share memory (tied weights); safetensors refuses that, a clone never does.
        save_file({k: v.detach().cpu().clone() for k, v in tensors.items()}, self.directory / name)
        state_file = self.directory / "state.json"
        temporary = state_file.with_suffix(".tmp")
        temporary.write_text(json.dumps({"tensors": name, "history": asdict(history), **progress, "step": step}))
        temporary.replace(state_file)
        for old in self.directory.glob("step-*.safetensors"):
            if old.name != name:
                old.unlink()

    def load(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        if self.directory is None or not (self.directory / "state.json").is_file():
            return None
        state = json.loads((self.directory / "state.json").read_text())
        if not (self.directory / state["tensors"]).is_file():
            return None
        return state, load_file(self.directory / state["tensors"])


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in _part(tensors, "optimizer.").items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def fit(
    model: nn.Module,
    step_loss: StepLoss,
    *,
    lengths: Sequence[int],
    evaluate: Callable[[], Mapping[str, float]],
    epochs: float,
    batch_size: int,
    learning_rate: float,
    schedule: str,
    warmup: float,
    weight_decay: float,
    clip_norm: float,
    precision: str,
    seed: int,
    observer: Observer,
    evaluations_per_epoch: int = 1,
    patience: int | None = None,
    checkpoint: Path | None = None,
) -> History:
    """Trains a model in place and leaves it with the weights of the evaluation that it chose.

    AdamW is Loshchilov & Hutter 2019 (arXiv:1711.05101), in its fused kernel. Chosen is the latest evaluation whose
    ``accuracy`` is within one standard error of the highest (Breiman et al. 1984, section 3.4.3): smaller differences
    are noise, and later weights have had more of the decaying learning rate.

    Args:
        evaluate: ``accuracy`` and, if it is measured on a sample, its ``standard_error``, on the selection split.
        step_loss: rows → loss; called under autocast.
        lengths: tokens per row (N,), for the buckets.
        epochs: passes over the rows; fractions are fine.
        patience: evaluations without improvement before stopping; ``None`` never stops early.
        checkpoint: directory of the resumable state, written after each evaluation; resumed from if it holds one.

    Raises:
        FloatingPointError: the loss was not finite.
    """
    device = next(model.parameters()).device
    chosen = choose_precision(precision, device)
    batches_per_epoch = math.ceil(len(lengths) / batch_size)
    total = max(1, math.ceil(epochs * batches_per_epoch))
    evaluate_every = max(1, batches_per_epoch // evaluations_per_epoch)
    optimizer = torch.optim.AdamW(_parameter_groups(model, weight_decay), lr=learning_rate, fused=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    history = History(notes={"precision": chosen.reason, "device": str(device), "total_steps": total})
    saver = _Checkpoint(checkpoint)
    first_step, bad_evaluations, highest = 0, 0, -math.inf
    best = {k: v.detach().clone() for k, v in model.state_dict().items()}

    if (resumed := saver.load()) is not None:
        state, tensors = resumed
        model.load_state_dict(_part(tensors, "model."))
        best = {k: v.to(device) for k, v in _part(tensors, "best.").items()}
        _restore_optimizer(optimizer, tensors)
        torch.set_rng_state(tensors["random"])
        history = History(**state["history"])
        history.notes["resumed_at_step"] = state["step"]
        first_step, bad_evaluations = state["step"], state["bad_evaluations"]
        highest = state["highest"]

    model.train()
    observer.start(total_steps=total, first_step=first_step)
    record_every = max(1, total // POINTS_PER_RUN)
    sums: dict[str, float] = {}
    rows_seen, steps_seen, clock = 0, 0, time.perf_counter()
    batches: list[list[int]] = []
    epoch = -1
    for step in range(first_step, total):
        if step // batches_per_epoch != epoch:
            epoch = step // batches_per_epoch
            # Seeded by epoch, so that a resumed run meets the same batches.
            batches = batching.shuffled_buckets(lengths, batch_size, random.Random(seed * 100_003 + epoch))
        rows = batches[step % batches_per_epoch]
        factor = learning_rate_factor(step, total, warmup=warmup, schedule=schedule)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * factor
        with torch.autocast(device.type, chosen.autocast or torch.bfloat16, enabled=chosen.autocast is not None):
            loss, parts = step_loss(rows)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"loss is {value} at step {step}; lower the learning rate or use precision fp32")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        for name, part in {"loss": value, **parts}.items():
            sums[name] = sums.get(name, 0.0) + part
        rows_seen, steps_seen = rows_seen + len(rows), steps_seen + 1
        done = step + 1
        if done % record_every == 0 or done == total:
            point = {name: total_ / steps_seen for name, total_ in sums.items()}
            point |= {"learning_rate": learning_rate * factor, "epoch": done / batches_per_epoch}
            point["samples_per_s"] = rows_seen / (time.perf_counter() - clock)
            history.points.append({"step": done, **point})
            observer.step(done, point)
            sums, rows_seen, steps_seen, clock = {}, 0, 0, time.perf_counter()
        if done % evaluate_every == 0 or done == total:
            paused = time.perf_counter()
            evaluation = {"epoch": done / batches_per_epoch, **evaluate()}
            model.train()
            history.evaluations.append({"step": done, **evaluation})
            observer.evaluation(done, evaluation)
            highest = max(highest, evaluation["accuracy"])
            if evaluation["accuracy"] >= highest - evaluation.get("standard_error", 0.0):
                bad_evaluations = 0
                best = {k: v.detach().clone() for k, v in model.state_dict().items()}
            else:
                bad_evaluations += 1
            saver.save(done, model, best, optimizer, history, {"bad_evaluations": bad_evaluations, "highest": highest})
            if patience is not None and bad_evaluations >= patience:
                history.notes["stopped_early_at_step"] = done
                break
            clock += time.perf_counter() - paused
    model.load_state_dict(best)
    model.eval()
    return history

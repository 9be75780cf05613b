"""The training loop that every stage shares: length buckets, warm-up and decay, curves, evaluation, early stopping,
checkpoints that resume. What is learned, and from what, is the caller's ``step_loss``; a step is ``updates.Update``.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks.ml import machine
from tasks.ml.data.batching import Sampler
from tasks.ml.models import attention, dropout
from tasks.ml.parallel import world
from tasks.ml.training import compilation, memory, offload, optimizers
from tasks.ml.training.activations import Demand
from tasks.ml.training.checkpoints import Checkpoints, Saved
from tasks.ml.training.precision import Choice, matmul_rate, products
from tasks.ml.training.updates import StepLoss, Taken, Update

POINTS_PER_RUN = 200
"""Resolution of the recorded learning curves."""
SAVES_EVERY = 300.0
"""Seconds between checkpoints, beside those at each evaluation."""


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
    """Multiplier of the peak learning rate at a step: linear warm-up, then ``linear`` or ``cosine`` decay to
    zero, or ``constant``."""
    rising = max(1, round(total * warmup)) if warmup > 0 else 0
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    progress = (step - rising) / max(1, total - rising)
    return 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress


def flops_per_token(model: nn.Module) -> int:
    """Floating-point operations of training on one token: 6 per weight of a linear layer (Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1: 2 forward, 4 backward). Attention's own products are not counted, and what a shortcut
    leaves out is.
    """
    return 6 * sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)))


def peak_memory_mb(device: torch.device) -> float:
    """Most that the processes which train together ever held, in 10^6 bytes: on GPUs what torch allocated there, else
    their resident sets, in which what they share, such as libraries, counts for each."""
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated(device) / 1e6
    elif sys.platform == "linux":
        held = machine.peak_memory_mb()
    else:
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    return world.total(torch.tensor(held, device=device)).item()


class _Meter:
    """Adds up what steps came to, on the device, and makes a point of the curves of it."""

    def __init__(self, flops: int, peak_rate: float, device: torch.device, *, seconds: float) -> None:
        self.flops, self.peak_rate, self.device, self.seconds = flops, peak_rate, device, seconds
        self.clear()

    def clear(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.steps = self.rows = self.tokens = 0
        self.clock = time.perf_counter()

    def add(self, taken: Taken, *, rows: int, tokens: int) -> None:
        values = {"loss": taken.loss, **taken.parts, "gradient_norm": taken.gradient_norm}
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps, self.rows, self.tokens = self.steps + 1, self.rows + rows, self.tokens + tokens

    def pause(self, seconds: float) -> None:
        """Leaves out time that was not spent on steps."""
        self.clock += seconds

    def elapsed(self) -> float:
        """Seconds of all steps so far."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.seconds + time.perf_counter() - self.clock

    def point(self) -> dict[str, float]:
        # Reading the sums waits for the device, so the time is taken after it.
        means = {name: value.item() / self.steps for name, value in self.sums.items()}
        seconds = time.perf_counter() - self.clock
        self.seconds += seconds
        return means | {
            "samples_per_s": self.rows / seconds,
            "tokens_per_s": self.tokens / seconds,
            "flops_utilization": self.flops * self.tokens / seconds / self.peak_rate,
            "peak_memory_mb": peak_memory_mb(self.device),
        }


@dataclass
class _Best:
    """The evaluation whose weights will be kept: the latest within one standard error of the highest."""

    highest: float = -math.inf
    bad: int = 0
    """Evaluations since."""
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """Empty where the model itself has them."""

    def look(self, evaluation: Mapping[str, float]) -> bool:
        """Whether the weights that were evaluated are the ones to keep."""
        self.highest = max(self.highest, evaluation["quality"])
        good = evaluation["quality"] >= self.highest - evaluation.get("standard_error", 0.0)
        self.bad = 0 if good else self.bad + 1
        return good


def _random_states() -> dict[str, list[str]]:
    """The state of each generator in every process, in hexadecimal digits."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: world.everybody([bytes(state.tolist()).hex()]) for name, state in states.items()}


def _set_random_states(states: Mapping[str, list[str]]) -> None:
    """Takes up what ``_random_states`` returned; a process beyond those there were keeps what it was seeded with."""
    number = world.rank() if world.row_shares() > 1 else 0
    setters = {"cpu": torch.set_rng_state, "cuda": torch.cuda.set_rng_state if torch.cuda.is_available() else None}
    for name, of_processes in states.items():
        if number < len(of_processes) and (setter := setters[name]) is not None:
            setter(torch.frombuffer(bytearray.fromhex(of_processes[number]), dtype=torch.uint8))


@dataclass
class _Run:
    """All that changes while a model is trained, to be written down and taken up again."""

    model: nn.Module
    update: Update
    best: _Best
    history: History

    def _tensors(self) -> dict[str, torch.Tensor]:
        groups = {
            "model": self.model.state_dict(),
            "best": self.best.weights,
            "optimizer": self.update.optimizers.tensors(),
        }
        return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}

    def save(self, checkpoints: Checkpoints, step: int) -> None:
        state = {
            "history": asdict(self.history),
            "best": {"highest": self.best.highest, "bad": self.best.bad, "apart": bool(self.best.weights)},
            "random": _random_states(),
            "optimizer": dict(world.everybody(list(self.update.optimizers.scalars().items()))),
            "scaler": self.update.scaler.state_dict(),
            "micro_batch": self.update.micro_batch,
            "out_of_memory_at": self.update.out_of_memory_at,
        }
        checkpoints.save(step, self._tensors(), state)

    def restore(self, saved: Saved) -> int:
        """Returns the step that the checkpoint is of."""
        state = saved.state
        if state["best"]["apart"]:
            self.best.weights = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.update.optimizers.prime()
        saved.read(self._tensors())
        self.update.optimizers.restore(state["optimizer"])
        self.update.scaler.load_state_dict(state["scaler"])
        self.update.micro_batch, self.update.out_of_memory_at = state["micro_batch"], state["out_of_memory_at"]
        self.best.highest, self.best.bad = state["best"]["highest"], state["best"]["bad"]
        for name, value in state["history"].items():
            setattr(self.history, name, value)
        self.history.notes["resumed_at_step"] = state["step"]
        _set_random_states(state["random"])
        return int(state["step"])


def fit(
    model: nn.Module,
    step_loss: StepLoss,
    *,
    lengths: Sequence[int],
    evaluate: Callable[[], Mapping[str, float]],
    batch_size: int,
    learning_rate: float,
    schedule: str,
    warmup: float,
    precision: Choice,
    seed: int,
    observer: Observer,
    epochs: float = 1,
    weight_decay: float = 0.01,
    clip_norm: float = 1.0,
    optimizer: str = "adamw",
    layer_decay: float = 1.0,
    batching: str = "bucketed",
    batch_tokens: int = 0,
    micro_batch: int = 0,
    offload_optimizer: bool = False,
    compile: str = "off",
    max_memory: float = 0.0,
    demand: Demand | None = None,
    steps: int | None = None,
    evaluations_per_epoch: int = 1,
    patience: int | None = None,
    checkpoint: Path | None = None,
    saves_every: float = SAVES_EVERY,
    before_saving: Callable[[], object] = lambda: None,
) -> History:
    """Trains a model in place and leaves it with the weights of the evaluation that it chose.

    Chosen is the latest evaluation whose ``quality`` is within one standard error of the highest (Breiman et al. 1984,
    section 3.4.3): smaller differences are noise, and later weights have had more of the decaying learning rate.

    Args:
        evaluate: ``quality`` and, if it is measured on a sample, its ``standard_error``, on the selection split.
        step_loss: called under autocast.
        lengths: tokens per row (N,).
        epochs: passes over the rows; fractions are fine.
        optimizer: one of ``optimizers.OPTIMIZERS``; ``schedule`` is left out for one that is schedule-free.
        batching: ``bucketed`` puts rows of similar length together, ``shuffled`` any.
        batch_tokens: tokens of a batch, padding included, instead of ``batch_size`` rows; 0: rows.
        micro_batch: rows computed at once; their gradients add up. 0: the whole batch.
        offload_optimizer: keeps the optimizer's state in the host's memory; see ``offload``.
        compile: ``auto`` computes layers with compiled code where that is faster, ``off`` never.
        max_memory: limit of all processes of this machine, or of each GPU, in 10^9 bytes; how much is computed at once
            is then planned, see ``memory``. 0: no limit.
        demand: what a row takes, for that.
        steps: optimizer steps in all, instead of ``epochs``; 0 leaves the model as it is.
        patience: evaluations without improvement before stopping; ``None`` never stops early.
        checkpoint: directory of the resumable state, written after each evaluation and every ``saves_every`` seconds;
            resumed from if it holds one. The clock is read where a point of the curves is recorded.
        before_saving: writes down what a run that goes on from a checkpoint has to find beside it.

    Raises:
        FeatherweightError: what was asked for cannot be had here, and no step was taken.
        FloatingPointError: a loss or gradient was not finite; the newest checkpoint is of before it.
    """
    device = next(model.parameters()).device
    sampler = Sampler(lengths, batch_size, seed=seed, batch_tokens=batch_tokens, batching=batching)
    total = max(1, math.ceil(epochs * sampler.per_epoch)) if steps is None else steps
    evaluate_every = max(1, sampler.per_epoch // evaluations_per_epoch)
    record_every = max(1, total // POINTS_PER_RUN)
    algorithm = optimizers.build(
        model, optimizer, learning_rate=learning_rate, weight_decay=weight_decay, layer_decay=layer_decay
    )
    if algorithm.description.schedule_free:
        schedule = "constant"
    update = Update(model, step_loss, algorithm, precision, clip_norm=clip_norm, micro_batch=micro_batch)
    history = History(notes={"precision": precision.reason, "device": str(device), "total_steps": total})
    if offload_optimizer:
        history.notes["optimizer_offload"] = offload.to_host(algorithm)
    best, first_step, saver = _Best(), 0, Checkpoints(checkpoint)
    run = _Run(model, update, best, history)
    if (resumed := saver.newest()) is not None:
        first_step = run.restore(resumed)
        update.loss.updated()

    plan = memory.remembered(history.notes)
    if plan is None and max_memory and demand is not None:
        longest = max(lengths)
        plan = memory.choose(
            model,
            algorithm,
            demand,
            max_memory=max_memory,
            batch=len(world.largest_share_of_rows(range(min(len(lengths), sampler.rows_of(longest))))),
            micro_batch=micro_batch,
            length=longest,
            state_elsewhere=offload_optimizer and device.type == "cuda",
        )
        update.micro_batch = plan.rows_at_once
    model.train()
    observer.start(total_steps=total, first_step=first_step)
    trained_s = history.notes.get("training_s", 0.0)
    first_batches = [sampler.at(step) for step in range(first_step, total)[: compilation.BATCHES]]
    passes = compilation.Passes(model, step_loss, first_batches, update.micro_batch, precision)
    pays = compilation.where_it_pays(passes, history.notes, lengths=lengths, steps=total - first_step, mode=compile)
    planned = memory.kept_to(plan, model, history.notes)
    with attention.afforded(model, precision.autocast), dropout.cheaper(model), products(precision), planned, pays:
        rate = matmul_rate(device.type, precision.matmul_dtype)
        meter = _Meter(flops_per_token(model), rate, device, seconds=trained_s)
        saved_at = time.monotonic()
        for step in range(first_step, total):
            rows = sampler.at(step)
            factor = learning_rate_factor(step, total, warmup=warmup, schedule=schedule)
            taken = update.take(rows, step=step, learning_rate_factor=factor)
            meter.add(taken, rows=len(rows), tokens=sum(lengths[row] for row in rows))
            done = step + 1
            where = {"epoch": done / sampler.per_epoch}
            recording = done % record_every == 0 or done == total
            if recording:
                point = meter.point() | {"learning_rate": learning_rate * factor} | where
                history.points.append({"step": done, **point})
                observer.step(done, point)
                meter.clear()
            looking = done % evaluate_every == 0 or done == total
            late = recording and checkpoint is not None and world.first(time.monotonic() - saved_at > saves_every)
            saving = done < total and (looking or late)
            if looking or saving:
                history.notes["training_s"] = meter.elapsed()
            paused = time.perf_counter()
            if looking:
                where["training_s"] = history.notes["training_s"]
                with algorithm.averaged():
                    update.loss.updated()
                    evaluation = where | dict(evaluate())
                    if best.look(evaluation):
                        # At the end nothing will change them any more, unless they are an average that is put back.
                        copied = done < total or algorithm.description.schedule_free
                        best.weights = {}  # lest there be two copies for a moment
                        best.weights = {k: v.clone() for k, v in model.state_dict().items()} if copied else {}
                update.loss.updated()
                model.train()
                history.evaluations.append({"step": done, **evaluation})
                observer.evaluation(done, evaluation)
                seconds = time.perf_counter() - paused
                history.notes["evaluation_s"] = history.notes.get("evaluation_s", 0.0) + seconds
            if saving:
                before_saving()
                run.save(saver, done)
                saved_at = time.monotonic()
            meter.pause(time.perf_counter() - paused)
            if patience is not None and best.bad >= patience:
                history.notes["stopped_early_at_step"] = done
                break
    history.notes.setdefault("training_s", 0.0)
    if best.weights:
        model.load_state_dict(best.weights)
    update.loss.close()
    model.eval()
    history.notes["gradients"] = update.loss.how
    weights = sum(world.local(p).nbytes for p in model.parameters())
    history.notes["weights_mb"] = round(weights / 1e6, 3)
    history.notes["optimizer_state_mb"] = round(algorithm.state_bytes() / 1e6, 3)
    history.notes["micro_batch"] = update.micro_batch or sampler.largest
    return history

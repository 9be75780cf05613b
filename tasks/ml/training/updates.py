"""One optimizer step: micro-batches, precision, loss scaling, clipping, and the guard against what is not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from tasks.ml.data import batching
from tasks.ml.parallel import world
from tasks.ml.training import synchronization
from tasks.ml.training.optimizers import Optimizers, gradients
from tasks.ml.training.precision import Choice, autocast


class StepLoss(Protocol):
    """The loss of a batch, a sum of means, computed some of its rows at a time. K = kinds of things averaged over."""

    def amounts(self, parts: Sequence[list[int]]) -> torch.Tensor:
        """What the rows in these lists hold of all that a mean is taken over, in the host's memory: float64 (K,).

        Amounts of parts of a batch add up to the batch's. Each list of rows may be computed at once.
        """
        ...

    def __call__(self, rows: list[int], whole: torch.Tensor) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """What these rows add to the loss of a batch that holds ``whole`` (K,), and to each named part of it, which is
        detached."""
        ...


LOOKS_EVERY = {"cpu": 1, "cuda": 8}
"""Steps between looks at whether all is finite; on a GPU each look waits for the device."""
SMALLEST_SCALE = 2.0**-14
"""fp16 halves its loss scale while gradients overflow; below this it is the gradients that are wrong."""


@dataclass
class Taken:
    """What a step came to, on the device: nothing here waits for it."""

    loss: torch.Tensor
    parts: dict[str, torch.Tensor]
    gradient_norm: torch.Tensor


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Update:
    """Takes optimizer steps.

    A batch may be cut into micro-batches, and shared among processes: each adds its part of every mean, so that the
    gradient is that of the whole batch.
    """

    def __init__(
        self,
        model: nn.Module,
        step_loss: StepLoss,
        optimizers: Optimizers,
        precision: Choice,
        *,
        clip_norm: float,
        micro_batch: int,
    ) -> None:
        self.model, self.step_loss, self.optimizers, self.precision = model, step_loss, optimizers, precision
        self.loss = synchronization.choose(model, step_loss, optimizers, precision)
        self.clip_norm, self.micro_batch = clip_norm, micro_batch
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision.scaled)
        self.out_of_memory_at: int | None = None

    def _accumulate(self, rows: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mine = batching.split(world.share_of_rows(rows), self.micro_batch)
        # Who has fewer micro-batches than others computes a row that counts for nothing: all must take part in each.
        most = len(batching.split(world.largest_share_of_rows(rows), self.micro_batch))
        micros = [*mine, *[rows[:1]] * (most - len(mine))]
        with autocast(self.precision, self.device):
            whole = world.total_of_rows(self.step_loss.amounts(mine))
        total: dict[str, torch.Tensor] = {}
        for number, micro in enumerate(micros, start=1):
            counts = float(number <= len(mine))
            with self.loss.gathering(last=number == len(micros)):
                with autocast(self.precision, self.device):
                    loss, parts = self.loss.forward(micro, whole)
                self.scaler.scale(loss * (counts * self.loss.weight())).backward()
            for name, value in {"loss": loss.detach(), **parts}.items():
                total[name] = total[name] + counts * value if name in total else counts * value
        sums = world.total_of_rows(torch.stack(list(total.values())))
        total = dict(zip(total, sums, strict=True))
        return total.pop("loss"), total

    def _forgiving(self, rows: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Computes gradients; where memory does not suffice for the first time, again in halves (one process)."""
        try:
            return self._accumulate(rows)
        except RuntimeError as error:
            size = self.micro_batch or len(rows)
            # Other processes would wait for gradients that do not come again.
            once = self.out_of_memory_at is None and world.size() == 1
            if not _is_out_of_memory(error) or not once or size == 1:
                raise
            self.out_of_memory_at, self.micro_batch = size, -(-size // 2)
        # Outside the handler, whose traceback keeps the tensors of the failed pass alive.
        self.optimizers.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._accumulate(rows)

    def take(self, rows: list[int], *, step: int, learning_rate_factor: float) -> Taken:
        """Moves the weights by one step over these rows.

        Raises:
            FloatingPointError: a loss or gradient was not finite. On the CPU the weights are as before the step.
        """
        self.optimizers.set_learning_rate(learning_rate_factor)
        loss, parts = self._forgiving(rows)
        self.loss.exchange()
        self.optimizers.unscale(self.scaler)
        values = gradients(self.optimizers.parameters)
        norm = self.loss.norm(values)
        if step % LOOKS_EVERY.get(self.device.type, 1) == 0:
            self._look(loss, norm, step)
        # Pascanu et al. 2013 (arXiv:1211.5063). On a GPU, to ask whether the norm is too large would wait for it.
        scale = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        if self.device.type != "cpu" or scale < 1:
            self.optimizers.scale_gradients(scale)
        self.optimizers.step(self.scaler)
        self.loss.updated()
        return Taken(loss, parts, norm)

    def _look(self, loss: torch.Tensor, norm: torch.Tensor, step: int) -> None:
        advice = "lower the learning rate or use precision fp32"
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {step}; {advice}")
        if torch.isfinite(norm):
            return
        if self.scaler.is_enabled() and self.scaler.get_scale() > SMALLEST_SCALE:
            return  # this step is left out and the scale halved
        named = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        values = {name: g.values() if g.is_sparse else world.local(g) for name, g in named.items()}
        guilty = world.everybody([name for name, value in values.items() if not torch.isfinite(value).all()])
        # Squares overflow before what they are of.
        who = guilty[0] if guilty else "all parameters together"
        raise FloatingPointError(f"gradient of {who} is not finite at step {step}; {advice}")

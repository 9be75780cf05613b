"""How the gradients of processes that train together become one: the seam between a step and how weights are held."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tasks.contracts.base import FeatherweightError
from tasks.ml.parallel import shared_memory, world
from tasks.ml.training.optimizers import Optimizers, total_norm
from tasks.ml.training.precision import Choice

if TYPE_CHECKING:
    from tasks.ml.training.updates import StepLoss


class Alone:
    """One process has all. The seam for where there are more."""

    how = "one process"

    def __init__(self, step_loss: Callable[..., Any]) -> None:
        self.forward = step_loss

    def gathering(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """To be open while the gradient of a part of a batch is computed, which may be the ``last`` one."""
        return contextlib.nullcontext()

    def weight(self) -> int:
        """What a process's share of a loss is multiplied by, so that ``exchange`` leaves the sum over processes."""
        return 1

    def exchange(self) -> None:
        """Leaves the sum over processes at the parameters that this process updates."""

    def norm(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        """Euclidean norm of the whole gradient, of which this process has these."""
        return total_norm(gradients)

    def updated(self) -> None:
        """Returns when every process has updated its parameters."""

    def close(self) -> None:
        """Leaves the weights in memory of their own."""


class _Loss(nn.Module):
    """A loss as a module: what DistributedDataParallel wraps, so that its forward pass is the one that it prepares."""

    def __init__(self, model: nn.Module, step_loss: StepLoss) -> None:
        super().__init__()
        self.model = model
        self.step_loss = step_loss

    def forward(self, rows: list[int], whole: torch.Tensor) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        return self.step_loss(rows, whole)


class Replicated(Alone):
    """Every process has all weights, and gradients are averaged, not summed, as they are computed.

    Li et al. 2020, PyTorch Distributed (arXiv:2006.15704).
    """

    how = "DistributedDataParallel"

    def __init__(self, model: nn.Module, step_loss: StepLoss) -> None:
        self.parallel = DistributedDataParallel(_Loss(model, step_loss), gradient_as_bucket_view=True)
        super().__init__(self.parallel)

    def weight(self) -> int:
        return world.size()

    def gathering(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if last else self.parallel.no_sync()


class Shared(Alone):
    """All processes have the same weights in shared memory, and each updates a part of them."""

    how = "shared memory"

    def __init__(self, model: nn.Module, step_loss: StepLoss, optimizers: Optimizers, precision: Choice) -> None:
        super().__init__(step_loss)
        self.weights = shared_memory.SharedWeights(model, optimizers.parameters, optimizers.tables, precision.autocast)
        optimizers.keep(self.weights.mine)

    def gathering(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        return self.weights.passing()

    def exchange(self) -> None:
        self.weights.exchange()

    def norm(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        return world.total(self.weights.sum_of_squares()).sqrt()

    def updated(self) -> None:
        self.weights.updated()

    def close(self) -> None:
        self.weights.close()


class Parted(Alone):
    """Each process holds a part of a weight (``parallelism.spread``), whose backward pass leaves the mean there."""

    def __init__(self, step_loss: StepLoss) -> None:
        super().__init__(step_loss)
        self.how = "tensor parallelism" if world.row_shares() == 1 else "FSDP2"

    def weight(self) -> int:
        return world.row_shares()

    def norm(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        parts = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
        others = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        norms = [world.whole(nn.utils.get_total_norm(kind)) for kind in (parts, others) if kind]
        return functools.reduce(torch.hypot, norms)


def choose(model: nn.Module, step_loss: StepLoss, optimizers: Optimizers, precision: Choice) -> Alone:
    """Chooses how these processes train a model together: a whole one in shared memory where they can.

    Where the loss is scaled, every process must see all gradients, to know whether any overflowed.

    Raises:
        FeatherweightError: the loss is scaled, and each process has a part of the gradients.
    """
    if world.size() == 1:
        return Alone(step_loss)
    if any(isinstance(p, DTensor) for p in model.parameters()):
        if precision.scaled:
            raise FeatherweightError(
                "precision: fp16 is not for processes that each hold a part of the gradients; choose bf16 or fp32, or "
                "parallelism replicated"
            )
        return Parted(step_loss)
    if not precision.scaled and shared_memory.is_possible(optimizers.parameters):
        return Shared(model, step_loss, optimizers, precision)
    return Replicated(model, step_loss)

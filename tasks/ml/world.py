"""The processes that train together, if more than one does: who this one is, what it computes, how results are joined.

R = processes ("world size"). A process is started by torchrun; alone, every function here is the identity.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tasks.ml import shared_memory
from tasks.ml.optimizers import Optimizers, total_norm

T = TypeVar("T")


def size() -> int:
    """Number of processes R."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, 0 … R − 1; process 0 writes, shows and decides."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def share(items: Sequence[T]) -> list[T]:
    """Every R-th item, starting with this process's."""
    return list(items[rank() :: size()])


def first(value: T) -> T:
    """What process 0 says, for every process: where clocks differ, and all must do the same."""
    values: list[Any] = [value]
    if size() > 1:
        distributed.broadcast_object_list(values)
    return values[0]


def gather(value: T) -> list[T]:
    """Everybody's values, in the order of processes, for process 0, and nothing for the others; alone, one's own."""
    if size() == 1:
        return [value]
    values: list[Any] | None = [None] * size() if rank() == 0 else None
    distributed.gather_object(value, values)
    return values or []


def everybody(values: list[T]) -> list[T]:
    """The items of all processes' lists, for every process."""
    if size() == 1:
        return values
    found: list[Any] = [None] * size()
    distributed.all_gather_object(found, values)
    return [value for each in found for value in each]


def total(values: torch.Tensor) -> torch.Tensor:
    """Adds up a tensor over all processes, in place; every process gets the sum."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values


class _Loss(nn.Module):
    """A loss as a module: what DistributedDataParallel wraps, so that its forward pass is the one that it prepares."""

    def __init__(self, model: nn.Module, step_loss: Callable[[list[int]], Any]) -> None:
        super().__init__()
        self.model = model
        self.step_loss = step_loss

    def forward(self, rows: list[int]) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        return self.step_loss(rows)


class Alone:
    """How the gradients of the processes become one, where there is one process. The seam for where there are more."""

    how = "one process"

    def __init__(self, step_loss: Callable[[list[int]], Any]) -> None:
        self.forward = step_loss

    def gathering(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """While it is open, gradients stay with this process unless this is the ``last`` part of a batch."""
        return contextlib.nullcontext()

    def exchange(self) -> None:
        """Leaves the mean over processes at the parameters that this process updates."""

    def norm(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        """Euclidean norm of the whole gradient, of which this process has these."""
        return total_norm(gradients)

    def updated(self) -> None:
        """Returns when every process has updated its parameters."""

    def close(self) -> None:
        """Leaves the model as it was, but trained."""


class Replicated(Alone):
    """Every process has all weights, and gradients are averaged as they are computed.

    Li et al. 2020, PyTorch Distributed (arXiv:2006.15704).
    """

    how = "DistributedDataParallel"

    def __init__(self, model: nn.Module, step_loss: Callable[[list[int]], Any]) -> None:
        self.parallel = DistributedDataParallel(_Loss(model, step_loss), gradient_as_bucket_view=True)
        super().__init__(self.parallel)

    def gathering(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if last else self.parallel.no_sync()


class Shared(Alone):
    """All processes have the same weights in shared memory, and each updates a part of them."""

    how = "shared memory"

    def __init__(self, step_loss: Callable[[list[int]], Any], optimizers: Optimizers) -> None:
        super().__init__(step_loss)
        self.weights = shared_memory.SharedWeights(optimizers.parameters, optimizers.tables)
        optimizers.keep(self.weights.mine)

    def exchange(self) -> None:
        self.weights.exchange()

    def norm(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        return total(total_norm(gradients) ** 2).sqrt()

    def updated(self) -> None:
        distributed.barrier()

    def close(self) -> None:
        self.weights.close()


def parallel(model: nn.Module, step_loss: Callable[[list[int]], Any], optimizers: Optimizers) -> Alone:
    """Chooses how these processes train a model together: in shared memory where they can."""
    if size() == 1:
        return Alone(step_loss)
    if shared_memory.is_possible(optimizers.parameters):
        return Shared(step_loss, optimizers)
    return Replicated(model, step_loss)

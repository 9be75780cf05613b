"""The processes that train together, if more than one does: who this one is, what it computes, how results are joined.

R = processes ("world size"). A process is started by torchrun; alone, every function here is the identity.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

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


class Replicated:
    """A loss whose gradients are averaged over all processes as they are computed.

    Li et al. 2020, PyTorch Distributed (arXiv:2006.15704).
    """

    def __init__(self, model: nn.Module, step_loss: Callable[[list[int]], Any]) -> None:
        self.forward: Callable[[list[int]], Any] = step_loss
        self.parallel: DistributedDataParallel | None = None
        if size() > 1:
            self.forward = self.parallel = DistributedDataParallel(
                _Loss(model, step_loss), gradient_as_bucket_view=True
            )

    @contextlib.contextmanager
    def gathering(self, *, last: bool) -> Iterator[None]:
        """While it is open, gradients stay with this process unless this is the ``last`` part of a batch."""
        with self.parallel.no_sync() if self.parallel is not None and not last else contextlib.nullcontext():
            yield

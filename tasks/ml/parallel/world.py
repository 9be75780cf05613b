"""The processes that train together, if more than one does: who this one is, what it computes, how results are joined.

R = processes ("world size"). A process is started by torchrun; alone, every function here is the identity.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.tensor import DTensor

T = TypeVar("T")

_same_rows: ContextVar[bool] = ContextVar("featherweight_same_rows", default=False)


def size() -> int:
    """Number of processes R."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def size_here() -> int:
    """Number of them on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size())) if size() > 1 else 1


def rank() -> int:
    """Number of this process, 0 … R − 1; process 0 shows and decides."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def wait() -> None:
    """Returns when all processes have come here."""
    if distributed.is_initialized():
        distributed.barrier()


def share(items: Sequence[T]) -> list[T]:
    """Every R-th item, starting with this process's."""
    return list(items[rank() :: size()])


def first(value: T) -> T:
    """What process 0 says, for every process: where clocks differ, and all must do the same."""
    values: list[Any] = [value]
    if size() > 1:
        distributed.broadcast_object_list(values)
    return values[0]


def everybody(values: list[T]) -> list[T]:
    """The items of all processes' lists, in the order of processes, for every process."""
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


@contextlib.contextmanager
def same_rows() -> Iterator[None]:
    """While it is open, every process computes all rows: they share the layers of a model, not its batches."""
    token = _same_rows.set(True)
    try:
        yield
    finally:
        _same_rows.reset(token)


def row_shares() -> int:
    """Number of shares that rows are cut into: R, or 1 where every process computes all of them."""
    return 1 if _same_rows.get() else size()


def share_of_rows(items: Sequence[T]) -> list[T]:
    """The items that this process computes."""
    return list(items) if row_shares() == 1 else share(items)


def largest_share_of_rows(items: Sequence[T]) -> list[T]:
    """The items that process 0 computes; no other has more."""
    return list(items[:: row_shares()])


def total_of_rows(values: torch.Tensor) -> torch.Tensor:
    """Adds up, in place, what processes computed of their shares of the rows."""
    return values if row_shares() == 1 else total(values)


def whole(values: torch.Tensor) -> torch.Tensor:
    """A tensor of which each process holds a part, put together in every one; all must ask for it."""
    return values.full_tensor() if isinstance(values, DTensor) else values


def local(values: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor, in the same memory."""
    return values.to_local() if isinstance(values, DTensor) else values

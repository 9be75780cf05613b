"""Rows in batches, of similar length if little is to be computed on padding. B = rows, S = tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch


def collate(rows: Sequence[Sequence[int]], *, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads token ids on the right to the longest row.

    Returns:
        ``input_ids`` and ``attention_mask``, both int64 (B, S); the mask is 1 on tokens and 0 on padding.
    """
    length = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
        attention_mask[index, : len(row)] = 1
    return input_ids, attention_mask


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Splits row indices, shortest first, into batches: for evaluation, where order does not matter."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def shuffled(lengths: Sequence[int], batch_size: int, rng: random.Random) -> list[list[int]]:
    """Splits row indices into batches at random, whatever their length."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    return split(order, batch_size)


def shuffled_buckets(
    lengths: Sequence[int], batch_size: int, rng: random.Random, *, batches_per_pool: int = 100
) -> list[list[int]]:
    """Splits row indices into batches of similar length, in random order: for training.

    Rows are shuffled, cut into pools of ``batches_per_pool`` batches, sorted by length within a pool and batched; the
    batches are then shuffled. Neighbours in length meet in ever new company, and padding stays at a few per cent.
    """
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), batch_size * batches_per_pool):
        pool = sorted(order[start : start + batch_size * batches_per_pool], key=lengths.__getitem__)
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    rng.shuffle(batches)
    return batches


BATCHINGS: dict[str, Callable[[Sequence[int], int, random.Random], list[list[int]]]] = {
    "shuffled": shuffled,
    "bucketed": shuffled_buckets,
}


class Sampler:
    """The batches of every epoch, drawn anew for each and the same again for a run that is resumed.

    Args:
        lengths: tokens per row (N,).
        batch_size: rows per batch.
        batching: one of ``BATCHINGS``.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int, batching: str = "bucketed") -> None:
        self.lengths, self.batch_size, self.seed, self.batching = lengths, batch_size, seed, batching
        self.per_epoch = -(-len(lengths) // batch_size)
        self._drawn: tuple[int, list[list[int]]] = (-1, [])

    def at(self, step: int) -> list[int]:
        """Returns the rows of the step's batch."""
        epoch, position = divmod(step, self.per_epoch)
        if self._drawn[0] != epoch:
            rng = random.Random(self.seed * 100_003 + epoch)
            self._drawn = epoch, BATCHINGS[self.batching](self.lengths, self.batch_size, rng)
        return self._drawn[1][position]


def split(rows: Sequence[int], size: int) -> list[list[int]]:
    """Cuts a batch into micro-batches of at most ``size`` rows; 0 leaves it whole."""
    size = size or len(rows) or 1
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]

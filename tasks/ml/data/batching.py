"""Rows in batches, of similar length if little is to be computed on padding. B = rows, S = tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tasks.contracts.base import FeatherweightError
from tasks.ml import tokens

CPU = torch.device("cpu")


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies from the host to a device; to a GPU from pinned memory, so that the host does not wait for the GPU.

    The next batch is then made and copied while the GPU computes the one before: it needs no thread of its own.
    """
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


@dataclass(frozen=True)
class Padding:
    """How far rows are padded: to the longest of a batch, rounded up, but not beyond the longest of all."""

    multiple_of: int = 1
    """Tokens. The fewer different lengths, the fewer shapes for which a library compiles and keeps code."""
    limit: int = 0
    """Tokens of the longest row that there is."""

    def length(self, rows: Sequence[Sequence[int]]) -> int:
        """Tokens that a batch of these rows has."""
        longest = max(1, *(len(row) for row in rows))
        return max(longest, min(-(-longest // self.multiple_of) * self.multiple_of, self.limit))


def collate(
    rows: Sequence[Sequence[int]], *, pad_id: int, device: torch.device = CPU, padding: Padding = Padding()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads token ids on the right.

    Returns:
        ``input_ids`` and ``attention_mask``, both int64 (B, S), on the device; the mask is 1 on tokens and 0 on
        padding.
    """
    length = padding.length(rows)
    input_ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
        attention_mask[index, : len(row)] = 1
    return send(input_ids, device), send(attention_mask, device)


def counted(rows: Sequence[Sequence[int]], attention_mask: torch.Tensor) -> torch.Tensor:
    """1 on the tokens of rows that count, (B, S) as the mask that ``collate`` made of them; that one if all do."""
    if not any(isinstance(row, tokens.Partly) for row in rows):
        return attention_mask
    length = attention_mask.shape[1]
    same = Padding(multiple_of=length, limit=length)
    return collate([tokens.counted(row) for row in rows], pad_id=0, device=attention_mask.device, padding=same)[0]


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Splits row indices, shortest first, into batches: for evaluation, where order does not matter."""
    return split(sorted(range(len(lengths)), key=lengths.__getitem__), batch_size)


RowsOf = Callable[[int], int]
"""From the tokens of a batch's longest row to the rows that the batch holds; the longer, the fewer."""
REFILLED_AT = 1.1
"""A batch takes more rows as soon as this many times as many would fit."""
COMPANY = 4
"""Batches that the rows of one are drawn from at least, so that a row meets others in every epoch."""


def filled(tokens: int) -> RowsOf:
    """As many rows as fit into this many tokens, padding included: rows × longest row ≤ tokens."""

    def rows(longest: int) -> int:
        if longest > tokens:
            raise FeatherweightError(
                f"batch_size: a row of {longest} tokens does not fit into {tokens}; the least is {longest} tokens"
            )
        return tokens // longest

    return rows


def _strata(lengths: Sequence[int], rows_of: RowsOf) -> list[tuple[list[int], int]]:
    """Divides rows into those that make batches of the same size, longest first: their indices, and that size.

    What is divided how depends on the lengths alone. All batches but the last of the last stratum are whole.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    strata: list[tuple[list[int], int]] = []
    start = 0
    while start < len(order):
        size = rows_of(lengths[order[start]])
        end = start + COMPANY * size
        while end < len(order) and rows_of(lengths[order[end]]) < REFILLED_AT * size:
            end += size
        strata.append((sorted(order[start:end]), size))
        start = end
    return strata


def shuffled(lengths: Sequence[int], rows_of: RowsOf, rng: random.Random) -> list[list[int]]:
    """Splits row indices into batches at random, whatever their length: all as if each held the longest row."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    return split(order, rows_of(max(lengths)))


def shuffled_buckets(
    lengths: Sequence[int], rows_of: RowsOf, rng: random.Random, *, batches_per_pool: int = 100
) -> list[list[int]]:
    """Splits row indices into batches of similar length, in random order: for training.

    Rows of the same stratum are shuffled, cut into pools of ``batches_per_pool`` batches, sorted by length within a
    pool and batched; all batches are then shuffled. Neighbours in length meet in ever new company, and padding stays
    at a few per cent.
    """
    batches: list[list[int]] = []
    for order, size in _strata(lengths, rows_of):
        rng.shuffle(order)
        for unsorted in split(order, size * batches_per_pool):
            batches += split(sorted(unsorted, key=lengths.__getitem__), size)
    rng.shuffle(batches)
    return batches


BATCHINGS: dict[str, Callable[[Sequence[int], RowsOf, random.Random], list[list[int]]]] = {
    "shuffled": shuffled,
    "bucketed": shuffled_buckets,
}
"""Each makes the same number of batches, whatever is drawn."""


class Sampler:
    """The batches of every epoch, drawn anew for each and the same again for a run that is resumed.

    Args:
        lengths: tokens per row (N,).
        batch_size: rows per batch.
        batch_tokens: tokens per batch, padding included, which then limit it instead of rows; 0: no such limit.
        batching: one of ``BATCHINGS``.

    Raises:
        FeatherweightError: a row alone has more than ``batch_tokens``.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, seed: int, batch_tokens: int = 0, batching: str = "bucketed"
    ) -> None:
        self.lengths, self.seed, self.batching = lengths, seed, batching
        self.rows_of = filled(batch_tokens) if batch_tokens else lambda _: batch_size
        self._drawn = 0, self._draw(0)
        self.per_epoch = len(self._drawn[1])
        self.largest = max(map(len, self._drawn[1]))
        """Rows of the largest batch."""

    def _draw(self, epoch: int) -> list[list[int]]:
        rng = random.Random(self.seed * 100_003 + epoch)
        return BATCHINGS[self.batching](self.lengths, self.rows_of, rng)

    def at(self, step: int) -> list[int]:
        """Returns the rows of the step's batch."""
        epoch, position = divmod(step, self.per_epoch)
        if self._drawn[0] != epoch:
            self._drawn = epoch, self._draw(epoch)
        return self._drawn[1][position]


def split(rows: Sequence[int], size: int) -> list[list[int]]:
    """Cuts rows into lists of at most ``size``; 0 leaves them whole."""
    size = size or len(rows) or 1
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]

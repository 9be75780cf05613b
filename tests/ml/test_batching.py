from __future__ import annotations

import random

import pytest
import torch

from tasks.ml import batching


def test_collate_pads_on_the_right() -> None:
    ids, mask = batching.collate([[5, 6, 7], [8]], pad_id=1)
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64


@pytest.mark.parametrize("num_rows", [1, 7, 32, 33, 300])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_every_row_once(num_rows: int, batch_size: int) -> None:
    lengths = random.Random(num_rows).choices(range(1, 65), k=num_rows)
    drawn = [draw(lengths, batch_size, random.Random(0)) for draw in batching.BATCHINGS.values()]
    for batches in (batching.by_length(lengths, batch_size), *drawn):
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        assert max(map(len, batches)) <= batch_size


def test_buckets_waste_little_and_differ_between_epochs() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(3, 60) for _ in range(5000)]
    first = batching.shuffled_buckets(lengths, 32, random.Random(1))
    second = batching.shuffled_buckets(lengths, 32, random.Random(2))
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in first)
    assert padded < 1.05 * sum(lengths)
    assert {frozenset(batch) for batch in first}.isdisjoint({frozenset(batch) for batch in second})
    ordered = [max(lengths[row] for row in batch) for batch in first]
    assert ordered != sorted(ordered)


def test_shuffled_batches_take_no_notice_of_length() -> None:
    lengths = list(range(1, 5001))
    batches = batching.shuffled(lengths, 32, random.Random(1))
    means = [sum(lengths[row] for row in batch) / len(batch) for batch in batches[:-1]]
    assert max(means) < 2 * min(means)
    assert batches != batching.shuffled(lengths, 32, random.Random(2))


@pytest.mark.parametrize("name", batching.BATCHINGS)
def test_a_sampler_draws_the_same_again_wherever_it_begins(name: str) -> None:
    lengths = random.Random(0).choices(range(1, 65), k=100)
    first, second = (batching.Sampler(lengths, 8, seed=3, batching=name) for _ in range(2))
    epochs = [[first.at(step) for step in range(start, start + 13)] for start in (0, 13, 26)]
    assert [second.at(step) for step in reversed(range(39))] == [batch for epoch in epochs for batch in epoch][::-1]
    for epoch in epochs:
        assert sorted(row for batch in epoch for row in batch) == list(range(100))
    assert epochs[0] != epochs[1]

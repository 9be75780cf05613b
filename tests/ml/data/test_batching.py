from __future__ import annotations

import random

import pytest
import torch

from tasks.contracts.base import FeatherweightError
from tasks.ml.data import batching


def test_collate_pads_on_the_right() -> None:
    assert [part.tolist() for part in batching.collate([[]], pad_id=1)] == [[[1]], [[0]]]
    ids, mask = batching.collate([[5, 6, 7], [8]], pad_id=1)
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64


@pytest.mark.parametrize(("multiple_of", "limit", "length"), [(1, 64, 5), (4, 64, 8), (4, 6, 6), (4, 3, 5), (5, 64, 5)])
def test_lengths_are_rounded_up_but_not_beyond_the_longest_row(multiple_of: int, limit: int, length: int) -> None:
    padding = batching.Padding(multiple_of, limit)
    ids, mask = batching.collate([[7] * 5, [8]], pad_id=1, padding=padding)
    assert ids.tolist() == [[7] * 5 + [1] * (length - 5), [8] + [1] * (length - 1)]
    assert mask.sum(dim=1).tolist() == [5, 1]


@pytest.mark.parametrize("num_rows", [1, 7, 32, 33, 300])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_every_row_once(num_rows: int, batch_size: int) -> None:
    lengths = random.Random(num_rows).choices(range(1, 65), k=num_rows)
    drawn = [draw(lengths, lambda _: batch_size, random.Random(0)) for draw in batching.BATCHINGS.values()]
    for batches in (batching.by_length(lengths, batch_size), *drawn):
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        assert max(map(len, batches)) <= batch_size


def test_buckets_waste_little_and_differ_between_epochs() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(3, 60) for _ in range(5000)]
    first = batching.shuffled_buckets(lengths, lambda _: 32, random.Random(1))
    second = batching.shuffled_buckets(lengths, lambda _: 32, random.Random(2))
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in first)
    assert padded < 1.05 * sum(lengths)
    assert {frozenset(batch) for batch in first}.isdisjoint({frozenset(batch) for batch in second})
    ordered = [max(lengths[row] for row in batch) for batch in first]
    assert ordered != sorted(ordered)


def test_shuffled_batches_take_no_notice_of_length() -> None:
    lengths = list(range(1, 5001))
    batches = batching.shuffled(lengths, lambda _: 32, random.Random(1))
    means = [sum(lengths[row] for row in batch) / len(batch) for batch in batches[:-1]]
    assert max(means) < 2 * min(means)
    assert batches != batching.shuffled(lengths, lambda _: 32, random.Random(2))


@pytest.mark.parametrize(("name", "budget"), [("shuffled", 0), ("bucketed", 0), ("shuffled", 256), ("bucketed", 256)])
def test_a_sampler_draws_the_same_again_wherever_it_begins(name: str, budget: int) -> None:
    lengths = random.Random(0).choices(range(1, 65), k=100)
    first, second = (batching.Sampler(lengths, 8, batch_tokens=budget, seed=3, batching=name) for _ in range(2))
    steps = first.per_epoch
    assert budget or steps == 13
    epochs = [[first.at(epoch * steps + step) for step in range(steps)] for epoch in range(3)]
    drawn = [batch for epoch in epochs for batch in epoch]
    assert [second.at(step) for step in reversed(range(3 * steps))] == drawn[::-1]
    for epoch in epochs:
        assert sorted(row for batch in epoch for row in batch) == list(range(100))
    assert epochs[0] != epochs[1]


def tokens(batch: list[int], lengths: list[int]) -> int:
    return len(batch) * max(lengths[row] for row in batch)


@pytest.mark.parametrize("name", batching.BATCHINGS)
@pytest.mark.parametrize("num_rows", [1, 7, 100, 3000])
def test_batches_of_a_token_budget_hold_every_row_once_an_epoch_in_as_many_batches(num_rows: int, name: str) -> None:
    lengths = random.Random(0).choices(range(1, 65), k=num_rows)
    sampler = batching.Sampler(lengths, 8, batch_tokens=128, batching=name, seed=1)
    for epoch in range(3):
        batches = [sampler.at(epoch * sampler.per_epoch + step) for step in range(sampler.per_epoch)]
        assert sorted(row for batch in batches for row in batch) == list(range(num_rows))
        assert max(tokens(batch, lengths) for batch in batches) <= 128
        assert max(map(len, batches)) == sampler.largest


def test_a_token_budget_is_used_up_and_its_rows_meet_others_in_each_epoch() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(3, 60) for _ in range(5000)]
    sampler = batching.Sampler(lengths, 8, batch_tokens=1024, seed=1)
    first, second = ([sampler.at(epoch * sampler.per_epoch + i) for i in range(sampler.per_epoch)] for epoch in (0, 1))
    assert sum(lengths) / (1024 * len(first)) > 0.9
    assert sum(tokens(batch, lengths) for batch in first) < 1.05 * sum(lengths)
    assert {frozenset(batch) for batch in first}.isdisjoint({frozenset(batch) for batch in second})
    ordered = [max(lengths[row] for row in batch) for batch in first]
    assert ordered != sorted(ordered, reverse=True)


def test_a_budget_is_the_limit_of_rows_where_all_are_as_long() -> None:
    for name in batching.BATCHINGS:
        of_tokens = batching.Sampler([16] * 100, 1, batch_tokens=130, batching=name, seed=0)
        of_rows = batching.Sampler([16] * 100, 8, batching=name, seed=0)
        assert [of_tokens.at(step) for step in range(26)] == [of_rows.at(step) for step in range(26)]


def test_a_budget_below_the_longest_row_is_refused_with_the_least() -> None:
    with pytest.raises(FeatherweightError, match="batch_size: a row of 65 tokens does not fit into 64; the least is"):
        batching.Sampler([3, 65, 12], 8, batch_tokens=64, seed=0)

"""The dynamic program against trying everything, and what it means for a model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tasks.contracts import FeatherweightError
from tasks.ml import allocation
from tasks.ml.allocation import Option
from tasks.ml.importance import LayerImportance
from tasks.ml.latency_table import LatencyTable, LayerTimes

TIMES = LayerTimes(0.1, {0: 0.0, 1: 0.2, 2: 0.3, 4: 0.5}, {0: 0.0, 8: 0.2, 16: 0.4})
TABLE = LatencyTable(0.25, TIMES, LayerTimes(0.05, {0: 0.0, 4: 0.2}, {0: 0.0, 16: 0.1}))


def scores(seed: int, layers: int = 3) -> list[LayerImportance]:
    generator = torch.Generator().manual_seed(seed)
    return [
        LayerImportance(heads=torch.rand(4, generator=generator) * 4, ffn=torch.rand(16, generator=generator))
        for _ in range(layers)
    ]


def by_force(blocks: list[list[Option]], milliseconds: float) -> float:
    totals = [
        (sum(option.milliseconds for option in chosen), sum(option.lost for option in chosen))
        for chosen in itertools.product(*blocks)
    ]
    return min(lost for cost, lost in totals if cost <= milliseconds + 1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_it_finds_what_trying_everything_finds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    blocks = [
        [Option(n, float(ms), float(lost)) for n, (ms, lost) in enumerate(zip(
            generator.integers(0, 20, 4) * 0.5, generator.random(4) * 10, strict=True))]
        for _ in range(5)
    ]  # fmt: skip
    fastest = sum(min(option.milliseconds for option in block) for block in blocks)
    target = fastest + float(generator.integers(1, 20)) * 0.5
    chosen = allocation.choose(blocks, milliseconds=target, steps=round(target / 0.5))
    picked = [block[index] for block, index in zip(blocks, chosen, strict=True)]
    assert sum(option.milliseconds for option in picked) <= target + 1e-9
    assert sum(option.lost for option in picked) == pytest.approx(by_force(blocks, target))


def test_a_target_that_all_meet_removes_nothing() -> None:
    full = [{"heads": 4, "ffn": 16}] * 3
    assert allocation.allocate(scores(0), TABLE, milliseconds=TABLE.predict(full) * 1.001) == full


@pytest.mark.parametrize("speedup", [1.2, 1.5, 2.0])
def test_the_predicted_time_meets_the_target_and_uses_it(speedup: float) -> None:
    target = TABLE.predict([{"heads": 4, "ffn": 16}] * 3) / speedup
    shapes = allocation.allocate(scores(1), TABLE, milliseconds=target)
    assert 0.7 * target < TABLE.predict(shapes) <= target


def test_what_matters_little_goes_first() -> None:
    importance = scores(2)
    importance[0] = LayerImportance(heads=importance[0].heads, ffn=importance[0].ffn * 1e-3)
    importance[1] = LayerImportance(heads=importance[1].heads * 1e-3, ffn=importance[1].ffn)
    full = [{"heads": 4, "ffn": 16}] * 3
    without = [{"heads": 4, "ffn": 0}, {"heads": 0, "ffn": 16}, full[2]]
    assert allocation.allocate(importance, TABLE, milliseconds=TABLE.predict(without) * 1.001) == without


def test_blocks_that_are_gone_stay_gone() -> None:
    importance = scores(3)
    importance[1] = LayerImportance(heads=torch.zeros(0), ffn=torch.zeros(0))
    shapes = allocation.allocate(importance, TABLE, milliseconds=100.0)
    assert shapes == [{"heads": 4, "ffn": 16}, {"heads": 0, "ffn": 0}, {"heads": 4, "ffn": 16}]


def test_a_target_below_the_fixed_part_is_refused() -> None:
    with pytest.raises(
        FeatherweightError, match=r"target_speedup: the target is 0.400 ms, and 0.500 ms are embeddings"
    ):
        allocation.allocate(scores(0), TABLE, milliseconds=0.4)


def test_options_lose_the_least_important_units_first() -> None:
    found = allocation.options(torch.tensor([3.0, 1.0, 2.0]), {0: 0.0, 2: 1.0, 4: 2.0})
    assert [(x.units, x.milliseconds, x.lost) for x in found] == [(0, 0.0, 6.0), (2, 1.0, 1.0), (3, 1.5, 0.0)]

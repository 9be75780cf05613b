"""The dynamic program against trying everything, and what it means for a model."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tasks.contracts.base import FeatherweightError
from tasks.ml.latency import allocation
from tasks.ml.latency.allocation import Option
from tasks.ml.latency.latency_table import LatencyTable, LayerTimes

TIMES = LayerTimes(0.1, {0: 0.0, 1: 0.2, 2: 0.3, 4: 0.5}, {0: 0.0, 8: 0.2, 16: 0.4})
TABLE = LatencyTable(0.25, TIMES, LayerTimes(0.05, {0: 0.0, 4: 0.2}, {0: 0.0, 16: 0.1}))


FULL = [{"heads": 4, "ffn": 16}] * 3


def missing(shapes: list[dict[str, int]], worth: list[dict[str, float]]) -> float:
    """Damage that adds up: each block loses what it is worth, the more for each unit the more have gone."""
    return sum(
        one[kind] * (1 - shape[kind] / full[kind]) ** 2
        for full, shape, one in zip(FULL, shapes, worth, strict=True)
        for kind in ("heads", "ffn")
    )


def allocate(milliseconds: float, damage: Any = None, **options: Any) -> list[dict[str, int]]:
    even = [{"heads": 1.0, "ffn": 1.0}] * 3
    damage = damage or (lambda shapes: missing(shapes, even))
    found, lost = allocation.allocate(FULL, TABLE, milliseconds=milliseconds, damage=damage, **options)
    assert lost == damage(found)
    return found


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
    assert allocate(TABLE.predict(FULL) * 1.001) == FULL


@pytest.mark.parametrize("speedup", [1.2, 1.5, 2.0])
def test_the_predicted_time_meets_the_target_and_uses_it(speedup: float) -> None:
    target = TABLE.predict(FULL) / speedup
    assert 0.7 * target < TABLE.predict(allocate(target)) <= target


def test_what_matters_little_goes_first() -> None:
    worth = [{"heads": 1.0, "ffn": 1e-3}, {"heads": 1e-3, "ffn": 1.0}, {"heads": 1.0, "ffn": 1.0}]
    without = [{"heads": 4, "ffn": 0}, {"heads": 0, "ffn": 16}, FULL[2]]
    target = TABLE.predict(without) * 1.001
    assert allocate(target, lambda shapes: missing(shapes, worth), tries=1) == without


def test_attention_is_not_taken_from_all_layers_because_each_can_do_without() -> None:
    def damage(shapes: list[dict[str, int]]) -> float:
        heads = sum(shape["heads"] for shape in shapes)
        return (100.0 if heads == 0 else 0.1 / heads) + 0.002 * sum(16 - shape["ffn"] for shape in shapes)

    deaf = [{"heads": 0, "ffn": 16}] * 3
    target = TABLE.predict(deaf) * 1.05
    assert allocate(target, damage, tries=1) == deaf
    assert any(shape["heads"] for shape in allocate(target, damage))


def test_the_same_seed_finds_the_same_and_shapes_are_tried_once() -> None:
    tried: list[str] = []

    def damage(shapes: list[dict[str, int]]) -> float:
        tried.append(str(shapes))
        return missing(shapes, [{"heads": 0.3, "ffn": 2.0}, {"heads": 0.2, "ffn": 0.1}, {"heads": 1.0, "ffn": 0.5}])

    target = TABLE.predict(FULL) / 1.7
    first = allocate(target, damage, seed=3)
    tried.clear()
    assert allocation.allocate(FULL, TABLE, milliseconds=target, damage=damage, seed=3)[0] == first
    widths = 3 * 2 + 2 * 4 + 4  # of blocks alone: one of them may also be a whole
    assert len(tried) <= len(set(tried)) + widths


def test_time_is_given_up_that_would_damage_more_than_is_borne() -> None:
    """What is found is about as fast as any shapes that damage no more."""
    worth = [{"heads": 0.3, "ffn": 2.0}, {"heads": 0.2, "ffn": 0.1}, {"heads": 1.0, "ffn": 0.5}]

    def damage(shapes: list[dict[str, int]]) -> float:
        return missing(shapes, worth)

    target = TABLE.predict(FULL) / 2
    bold, all_of_it = allocation.allocate(FULL, TABLE, milliseconds=target, damage=damage)
    most = all_of_it / 3
    found, lost = allocation.allocate(FULL, TABLE, milliseconds=target, damage=damage, most=most)
    assert lost == damage(found) <= most
    middle, last = itertools.product((0, 1, 2, 4), (0, 8, 16)), itertools.product((0, 4), (0, 16))
    layers = [[{"heads": heads, "ffn": ffn} for heads, ffn in widths] for widths in (middle, last)]
    every = map(list, itertools.product(layers[0], layers[0], layers[1]))
    fastest = min(TABLE.predict(shapes) for shapes in every if damage(shapes) <= most)
    assert target < fastest <= TABLE.predict(found) <= 1.1 * fastest
    unharmed, none = allocation.allocate(FULL, TABLE, milliseconds=target, damage=damage, most=1e-9)
    assert (unharmed, none) == (FULL, 0.0)
    easy, _ = allocation.allocate(FULL, TABLE, milliseconds=target, damage=damage, most=2 * all_of_it)
    assert TABLE.predict(easy) <= target
    assert TABLE.predict(bold) <= target


def test_blocks_that_are_gone_stay_gone() -> None:
    full = [FULL[0], {"heads": 0, "ffn": 0}, FULL[2]]
    assert allocation.allocate(full, TABLE, milliseconds=100.0, damage=lambda _: 1.0)[0] == full


def test_a_target_below_the_fixed_part_is_refused() -> None:
    with pytest.raises(
        FeatherweightError,
        match=r"^pruning\.width\.target_speedup: the target is 0.400 ms, and 0.500 ms are embeddings",
    ):
        allocate(0.4)


def test_widths_between_measured_ones_are_interpolated() -> None:
    assert allocation.options(3, {0: 0.0, 2: 1.0, 4: 2.0}) == [(0, 0.0), (2, 1.0), (3, 1.5)]

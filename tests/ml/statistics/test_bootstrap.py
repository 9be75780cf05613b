"""Intervals: identities, agreement with row-by-row resampling, coverage, and what a bootstrap cannot see."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from tasks.ml.statistics.bootstrap import (
    Interval,
    median,
    paired_difference,
    quality_difference,
    quality_difference_over_seeds,
    ratio_of_medians,
)


def _correctness(n: int, *, lost: int, gained: int) -> tuple[np.ndarray, np.ndarray]:
    teacher, shipped = np.ones(n), np.ones(n)
    shipped[:lost] = 0.0
    teacher[lost : lost + gained] = 0.0
    return teacher, shipped


def test_identical_rows_differ_by_nothing() -> None:
    rows = np.random.default_rng(0).integers(0, 2, size=500).astype(np.float64)
    assert paired_difference(rows, rows.copy()) == Interval(0.0, 0.0, 0.0)


def test_swapping_the_models_mirrors_the_difference() -> None:
    teacher, shipped = _correctness(1000, lost=40, gained=20)
    forward, backward = paired_difference(teacher, shipped), paired_difference(shipped, teacher)
    assert forward.measured == 0.02 == -backward.measured
    assert forward.low == pytest.approx(-backward.high, abs=1e-3)
    assert forward.high == pytest.approx(-backward.low, abs=1e-3)


def test_a_constant_shift_is_certain() -> None:
    rows = np.linspace(0, 1, 100)
    assert paired_difference(rows + 0.25, rows) == pytest.approx((0.25, 0.25, 0.25))


def test_multinomial_counts_equal_resampling_row_by_row() -> None:
    teacher, shipped = _correctness(400, lost=30, gained=10)
    difference = teacher - shipped
    index = np.random.default_rng(1).integers(400, size=(20_000, 400))
    expected = np.quantile(difference[index].mean(axis=1), [0.025, 0.975])
    found = paired_difference(teacher, shipped, resamples=20_000)
    assert (found.low, found.high) == pytest.approx(expected, abs=2 / 400)


def test_pairing_is_used() -> None:
    """Two models that fail on the same rows are told apart far better than two that fail on different ones."""
    teacher, shipped = _correctness(1000, lost=10, gained=0)
    teacher[500:], shipped[500:] = 0.0, 0.0
    paired = paired_difference(teacher, shipped)
    shuffled = paired_difference(teacher, np.random.default_rng(0).permutation(shipped))
    assert paired.high - paired.low < 0.3 * (shuffled.high - shuffled.low)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(7)
    n, truth, covered, trials = 600, 0.03, 0, 400
    for seed in range(trials):
        difference = random.choice([1.0, 0.0, -1.0], p=[0.07, 0.89, 0.04], size=n)
        interval = paired_difference(difference, np.zeros(n), resamples=1000, seed=seed)
        covered += interval.low <= truth <= interval.high
    assert 0.91 <= covered / trials <= 0.98


def test_more_confidence_is_wider() -> None:
    teacher, shipped = _correctness(1000, lost=60, gained=30)
    narrow, wide = (paired_difference(teacher, shipped, confidence=level) for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("function", [paired_difference, ratio_of_medians])
def test_same_seed_same_interval_other_seed_other_interval(function) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(0)
    first, second = random.random(30) + 1, random.random(30) + 0.5
    assert function(first, second, seed=3) == function(first, second, seed=3)
    assert function(first, second, seed=3) != function(first, second, seed=4)


def test_ten_thousand_resamples_of_a_test_split_are_quick_and_small() -> None:
    random = np.random.default_rng(0)
    started = time.process_time()
    paired_difference(random.integers(0, 2, 2100) * 1.0, random.integers(0, 2, 2100) * 1.0)
    assert time.process_time() - started < 0.5
    first, second = random.random(200_000), random.random(200_000)
    tracemalloc.start()
    paired_difference(first, second, resamples=40)
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


@pytest.mark.parametrize(("first", "second"), [((3,), (4,)), ((0,), (0,)), ((2, 2), (2, 2))])
def test_rows_that_do_not_pair_are_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="paired rows"):
        paired_difference(np.zeros(first), np.zeros(second))


def test_equal_rounds_have_ratio_one() -> None:
    assert ratio_of_medians([2.0, 3.0, 5.0], [2.0, 3.0, 5.0]) == Interval(1.0, 1.0, 1.0)


def test_a_slow_machine_slows_both_and_leaves_the_ratio() -> None:
    machine = np.array([1.0, 3.0, 1.2, 2.0, 1.5])
    assert ratio_of_medians(10 * machine, machine) == pytest.approx((10.0, 10.0, 10.0))


def test_ratio_interval_holds_the_ratio_and_spreads_with_the_rounds() -> None:
    steady = ratio_of_medians([10.0, 10.1, 9.9, 10.0, 10.2], [1.0, 1.01, 0.99, 1.0, 1.02])
    noisy = ratio_of_medians([10.0, 14.0, 9.0, 10.5, 12.0], [1.0, 0.9, 1.3, 1.0, 1.1])
    for interval in (steady, noisy):
        assert interval.low <= interval.measured <= interval.high
    assert steady.high - steady.low < noisy.high - noisy.low


@pytest.mark.parametrize("rounds", [([], []), ([1.0, 0.0], [1.0, 1.0]), ([1.0], [float("nan")])])
def test_rounds_without_a_time_are_refused(rounds: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match="ratio of medians"):
        ratio_of_medians(*rounds)


@pytest.mark.parametrize("n", [40, 400, 2098])
def test_rows_that_all_agree_leave_room_for_what_was_not_seen(n: int) -> None:
    """About the rule of three: what happened in none of n rows may happen in 3 / n of all (95 %)."""
    measured, low, high = quality_difference(np.ones(n), np.ones(n))
    assert measured == 0.0
    assert low == pytest.approx(-3 / n, rel=0.4)
    assert high == pytest.approx(3 / n, rel=0.4)


def test_with_many_rows_the_allowance_vanishes() -> None:
    teacher, shipped = _correctness(2098, lost=100, gained=80)
    plain, careful = paired_difference(teacher, shipped), quality_difference(teacher, shipped)
    assert careful.measured == plain.measured
    assert careful == pytest.approx(plain, abs=5e-4)


@pytest.mark.parametrize(("n", "lost", "gained"), [(40, 0.05, 0.02), (40, 0.2, 0.1), (150, 0.02, 0.02)])
def test_accuracy_interval_covers_the_truth_with_few_rows(n: int, lost: float, gained: float) -> None:
    random = np.random.default_rng(5)
    covered, trials = 0, 400
    for seed in range(trials):
        difference = random.choice([1.0, 0.0, -1.0], p=[lost, 1 - lost - gained, gained], size=n)
        teacher, shipped = (difference >= 0) * 1.0, (difference <= 0) * 1.0
        interval = quality_difference(teacher, shipped, resamples=1000, seed=seed)
        covered += interval.low <= lost - gained <= interval.high
    assert covered / trials >= 0.92


def test_a_certain_loss_stays_inside_its_interval() -> None:
    measured, low, high = quality_difference(np.ones(30), np.zeros(30))
    assert low < measured == high == 1.0


def test_one_seed_is_the_interval_over_rows() -> None:
    teacher, shipped = _correctness(500, lost=30, gained=12)
    assert quality_difference_over_seeds(teacher[None], shipped[None]) == quality_difference(teacher, shipped)


def test_seeds_that_agree_add_nothing_and_seeds_that_part_widen() -> None:
    one, other = _correctness(2000, lost=60, gained=20), _correctness(2000, lost=120, gained=20)
    alone = quality_difference(*one)
    alike = quality_difference_over_seeds(*(np.stack([row, row]) for row in one))
    apart = quality_difference_over_seeds(*(np.stack(rows) for rows in zip(one, other, strict=True)))
    assert alike == pytest.approx(alone, abs=6e-4)
    assert apart.measured == pytest.approx((0.02 + 0.05) / 2)
    assert apart.low < 0.02 < 0.05 < apart.high


def test_interval_over_seeds_covers_the_mean_of_all_seeds() -> None:
    """The drop of a recipe whose seeds vary: an interval over rows alone would miss it too often."""
    random = np.random.default_rng(3)
    n, seeds, truth, trials = 800, 6, 0.02, 300
    covered = covered_by_rows = 0
    for seed in range(trials):
        drops = random.normal(truth, 0.012, size=(seeds, 1))
        difference = np.where(random.random((seeds, n)) < 0.05 + drops / 2, 1.0, 0.0)
        difference -= np.where((difference == 0) & (random.random((seeds, n)) < 0.05 - drops / 2), 1.0, 0.0)
        first, second = (difference >= 0) * 1.0, (difference <= 0) * 1.0
        low, high = quality_difference_over_seeds(first, second, resamples=600, seed=seed)[1:]
        covered += low <= truth <= high
        low, high = quality_difference(first[0], second[0], resamples=600, seed=seed)[1:]
        covered_by_rows += low <= truth <= high
    assert covered / trials >= 0.9
    assert covered_by_rows < covered


@pytest.mark.parametrize(("first", "second"), [((3, 2), (2, 3)), ((0, 4), (0, 4)), ((4,), (4,))])
def test_seeds_that_do_not_pair_are_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="paired rows"):
        quality_difference_over_seeds(np.zeros(first), np.zeros(second))


def test_median_lies_between_the_rounds() -> None:
    assert median([2.0, 2.0, 2.0]) == Interval(2.0, 2.0, 2.0)
    found = median([1.0, 1.1, 0.9, 5.0, 1.0])
    assert 0.9 <= found.low <= found.measured == 1.0 <= found.high <= 5.0
    with pytest.raises(ValueError, match="at least one round"):
        median([])

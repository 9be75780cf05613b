"""Differences and their certainty: intervals that say what the p-values say, and claims as rare as their level."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.ml.statistics import bootstrap, contrasts, discordance


def models(seed: int, *, seeds: int = 1, n: int = 800, gain: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Correctness (S, N) of two models of about 85 %, the first better by so much."""
    random = np.random.default_rng(seed)
    rows = random.random(n) < 0.85
    return tuple(
        np.stack([np.where(random.random(n) < 0.08, random.random(n) < 0.5 + better, rows) for _ in range(seeds)]) * 1.0
        for better in (gain / 0.08, 0.0)
    )  # type: ignore[return-value]


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("gain", [0.0, 0.02, 0.04])
def test_an_interval_leaves_zero_out_where_the_p_value_is_at_most_its_level(seeds: int, gain: float) -> None:
    for seed in range(20):
        found = contrasts.of_rows(*models(seed, seeds=seeds, gain=gain))
        for level in (0.2, 0.05, 0.0004, 0.999 * found.p_value, 0.5 + 0.5 * found.p_value):
            low, high = found.interval(level).low, found.interval(level).high
            assert low is not None
            assert high is not None
            assert (low > 0 or high < 0) == (found.p_value < level)


def test_of_rows_it_is_what_resampling_and_counting_say() -> None:
    for seeds in (1, 3):
        first, second = models(1, seeds=seeds, gain=0.03)
        drawn = bootstrap.quality_difference_over_seeds(first, second)
        found = contrasts.of_rows(first, second).interval(0.05)
        assert (found.measured, found.low, found.high) == pytest.approx(drawn, abs=0.003)
    for gain in (0.01, 0.02, 0.03):
        first, second = models(0, gain=gain)
        lost, gained, _ = discordance.count(first[0], second[0])
        assert 0.5 < contrasts.of_rows(first, second).p_value / discordance.mcnemar(lost, gained) < 2
    same = contrasts.of_rows(first, first)
    assert same.p_value == 1
    assert same.interval(0.05).high == pytest.approx(3 / 800, rel=0.1), "what was not seen may be"


def test_of_rounds_it_is_the_sign_test() -> None:
    fifteen = [1.2 + 0.01 * one for one in range(15)]
    sure = contrasts.of_rounds([fifteen])
    assert sure.p_value == pytest.approx(2 / 2**15)
    assert sure.interval(0.05) == contrasts.Estimate(*[pytest.approx(one) for one in (1.27, 1.23, 1.31)])
    assert sure.interval(1e-4).low == 1.2
    for wrong in range(8):
        rounds = [0.9] * wrong + fifteen[wrong:]
        found = contrasts.of_rounds([rounds])
        for level in (0.5, 0.05, 0.001):
            low = found.interval(level).low
            assert low is not None
            assert (low > 1) == (found.p_value <= level)
    assert contrasts.of_rounds([[1.0] * 15]).p_value == 1


def test_every_seed_must_show_it() -> None:
    fast, unsure = [1.5] * 15, [0.9] * 7 + [1.6] * 8
    both = contrasts.of_rounds([fast, unsure])
    assert both.p_value == pytest.approx(1)
    assert both.interval(0.05).measured == pytest.approx((1.5 * 1.6) ** 0.5)
    assert (both.interval(0.05).low, both.interval(0.05).high) == (0.9, 1.6)
    assert contrasts.of_rounds([fast, fast]).p_value == pytest.approx(2 / 2**15)


def test_few_rounds_show_nothing_and_none_are_refused() -> None:
    assert contrasts.of_rounds([[3.0, 3.1, 3.2]]).p_value == 0.25
    assert contrasts.of_rounds([[3.0, 3.1, 3.2]]).interval(0.05) == contrasts.Estimate(pytest.approx(3.1), 3.0, 3.2)
    for nothing in ([], [[]]):
        with pytest.raises(ValueError, match="at least one round"):
            contrasts.of_rounds(nothing)
    with pytest.raises(ValueError, match="paired rows"):
        contrasts.of_rows(np.ones((1, 3)), np.ones((1, 4)))

"""Holm's procedure against its definition, and a p-value against a simulation of what it claims."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.ml.statistics import multiplicity


def test_one_comparison_needs_no_correction() -> None:
    assert multiplicity.holm_levels([0.03], 0.05) == [0.05]
    assert multiplicity.holm([0.03]) == [0.03]


def test_levels_step_down_and_stop_at_the_first_that_fails() -> None:
    assert multiplicity.holm_levels([0.04, 0.001, 0.02], 0.05) == pytest.approx([0.05, 0.05 / 3, 0.025])
    assert multiplicity.holm_levels([0.04, 0.001, 0.03], 0.05) == pytest.approx([0.025, 0.05 / 3, 0.025])
    assert multiplicity.holm_levels([0.9, 0.8], 0.05) == pytest.approx([0.025, 0.025])


def test_adjusted_p_values_reject_what_the_levels_reject() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        p_values = list(random.random(4) ** 3)
        rejected = [p <= level for p, level in zip(p_values, multiplicity.holm_levels(p_values, 0.05), strict=True)]
        assert rejected == [p <= 0.05 for p in multiplicity.holm(p_values)]


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match="p-values lie in"):
        multiplicity.holm_levels([1.2], 0.05)


def test_at_the_margin_a_claim_is_made_as_rarely_as_the_level_says() -> None:
    random, n, margin = np.random.default_rng(1), 800, 0.03
    claims = []
    for _ in range(2000):
        lost = random.random(n) < 0.06
        won = ~lost & (random.random(n) < 0.03 / 0.94)
        claims.append(multiplicity.non_inferiority_p(1.0 - won, 1.0 - lost, margin) <= 0.05)
    assert np.mean(claims) == pytest.approx(0.05, abs=0.015)


def test_an_equal_model_of_many_rows_is_surely_not_inferior() -> None:
    rows = np.ones(2000)
    assert multiplicity.non_inferiority_p(rows, rows, 0.015) < 1e-6
    assert multiplicity.non_inferiority_p(rows[:20], rows[:20], 0.015) > 0.3

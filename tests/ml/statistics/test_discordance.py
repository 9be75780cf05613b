"""Tests on the rows where two models part: parity with references, limits, error rates, and sample sizes that hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from tasks.ml.statistics import bootstrap, discordance


def test_counting_is_of_rows_that_only_one_has_right() -> None:
    first, second = np.array([1.0, 1.0, 0.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0, 0.0])
    counts = discordance.count(first, second)
    assert counts == (2, 1, 5)
    assert counts.drop == pytest.approx((first - second).mean())
    with pytest.raises(ValueError, match="paired rows"):
        discordance.count(first, second[:3])


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (5, 5), (12, 3), (66, 63), (900, 1000), (30_000, 30_500)])
def test_mcnemar_is_a_fair_coin(lost: int, gained: int) -> None:
    expected = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert discordance.mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9)
    assert discordance.mcnemar(gained, lost) == discordance.mcnemar(lost, gained)


def _score_by_search(lost: int, gained: int, n: int, margin: float) -> float:
    """The score statistic with the restricted likelihood maximized by search, not by formula."""

    def unlikely(q: float) -> float:
        parts = ((lost, q + margin), (gained, q), (n - lost - gained, 1 - 2 * q - margin))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in parts if count)

    low, high = max(0.0, -margin), (1 - margin) / 2
    q = minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (lost - gained - n * margin) / math.sqrt(n * (2 * q + margin - margin**2))


@pytest.mark.parametrize(("lost", "gained", "n"), [(60, 45, 2098), (3, 9, 120), (1, 0, 44), (14, 2, 60)])
@pytest.mark.parametrize("margin", [-0.02, 0.0, 0.015, 0.1])
def test_score_is_that_of_the_restricted_likelihood(lost: int, gained: int, n: int, margin: float) -> None:
    found = discordance._score(margin, lost=lost, gained=gained, n=n)
    assert found == pytest.approx(_score_by_search(lost, gained, n, margin), abs=2e-3)


def test_with_no_margin_it_is_mcnemar_without_correction() -> None:
    z = (60 - 45) / math.sqrt(60 + 45)
    assert discordance.noninferiority(60, 45, 2098, margin=0.0) == pytest.approx(0.5 * math.erfc(-z / math.sqrt(2)))


def test_a_wider_margin_is_easier_and_the_largest_drop_is_where_it_turns() -> None:
    values = [discordance.noninferiority(60, 45, 2098, margin=margin) for margin in (0.0, 0.01, 0.015, 0.03)]
    assert values == sorted(values, reverse=True)
    edge = discordance.largest_drop(60, 45, 2098, confidence=0.95)
    assert discordance.noninferiority(60, 45, 2098, margin=edge) == pytest.approx(0.05, abs=1e-6)
    assert discordance.largest_drop(0, 0, 300, confidence=0.95) == pytest.approx(2.7 / 300, rel=0.05)  # rule of three
    assert discordance.largest_drop(30, 0, 30) == pytest.approx(1.0)


@pytest.mark.parametrize(("margin", "p"), [(1.0, 0.0), (-1.0, 1.0)])
def test_margins_at_the_ends_are_certain(margin: float, p: float) -> None:
    assert discordance.noninferiority(3, 2, 50, margin=margin) == p
    with pytest.raises(ValueError, match="margin"):
        discordance.noninferiority(3, 2, 50, margin=2 * margin)


def _draw(random: np.random.Generator, n: int, lost: float, gained: float, times: int) -> np.ndarray:
    return random.multinomial(n, [lost, gained, 1 - lost - gained], size=times)


def test_a_drop_of_the_margin_is_called_harmless_as_seldom_as_promised() -> None:
    random = np.random.default_rng(0)
    found = [
        discordance.noninferiority(int(lost), int(gained), 1000, margin=0.02) < 0.05
        for lost, gained, _ in _draw(random, 1000, 0.06, 0.04, 3000)
    ]
    assert 0.035 < np.mean(found) < 0.065


@pytest.mark.parametrize(("lost", "gained", "n", "rule_out"), [(6, 5, 100, 0.03), (4, 1, 100, 0.0), (2, 3, 150, 0.03)])
def test_with_the_rows_needed_four_of_five_samples_decide(lost: int, gained: int, n: int, rule_out: float) -> None:
    needed = discordance.rows_needed(lost, gained, n, rule_out=rule_out)
    assert needed is not None
    below = rule_out > (lost - gained) / n
    decided = []
    for drawn_lost, drawn_gained, _ in _draw(np.random.default_rng(1), needed, lost / n, gained / n, 300):
        teacher, shipped = np.ones(needed), np.ones(needed)
        shipped[:drawn_lost] = 0.0
        teacher[drawn_lost : drawn_lost + drawn_gained] = 0.0
        _, low, high = bootstrap.quality_difference(teacher, shipped, resamples=2000)
        decided.append(high < rule_out if below else low > rule_out)
    assert 0.72 < np.mean(decided) < 0.88


def test_rows_needed_is_the_published_formula_where_rows_are_many() -> None:
    lost, gained, n = 700, 500, 10_000
    discordant, drop = 0.12, 0.02
    expected = (1.959964 + 0.841621) ** 2 * (discordant - drop**2) / (0.03 - drop) ** 2
    assert discordance.rows_needed(lost, gained, n, rule_out=0.03) == pytest.approx(expected, rel=2e-3)
    fewer = discordance.rows_needed(lost, gained, n, rule_out=0.03, power=0.5)
    assert fewer is not None
    assert fewer < expected


def test_rows_needed_where_nothing_parts_and_where_nothing_helps() -> None:
    needed = discordance.rows_needed(0, 0, 40, rule_out=0.03)
    assert needed is not None
    assert 90 < needed < 150
    assert discordance.rows_needed(0, 0, 40, rule_out=0.0) is None
    assert discordance.rows_needed(3, 0, 100, rule_out=0.03) is None

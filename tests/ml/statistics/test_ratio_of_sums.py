"""What sums of rows have to each other: identities, coverage, and rows that are alike because they are of one text."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.ml.statistics.bootstrap import Interval, ratio_of_sums


def losses(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What two models lose of texts of many lengths; 3 % more in sum."""
    random = np.random.default_rng(seed)
    below = random.gamma(2.0, 30.0, n)
    return below * random.normal(1.03, 0.15, n), below


def test_a_constant_factor_is_certain() -> None:
    _, below = losses(50)
    assert ratio_of_sums(1.25 * below, below) == pytest.approx((1.25, 1.25, 1.25))
    assert ratio_of_sums(below, below) == Interval(1.0, 1.0, 1.0)


def test_what_is_measured_is_the_ratio_of_the_sums_and_not_the_mean_of_ratios() -> None:
    found = ratio_of_sums(np.array([1.0, 300.0]), np.array([2.0, 100.0]))
    assert found.measured == pytest.approx(301 / 102)
    assert found.low == pytest.approx(0.5)
    assert found.high == pytest.approx(3.0)


def test_it_agrees_with_resampling_row_by_row() -> None:
    above, below = losses(80)
    index = np.random.default_rng(1).integers(80, size=(20_000, 80))
    expected = np.quantile(above[index].sum(axis=1) / below[index].sum(axis=1), [0.025, 0.975])
    found = ratio_of_sums(above, below)
    assert (found.low, found.high) == pytest.approx(expected, abs=2e-3)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered, trials = 0, 400
    for seed in range(trials):
        interval = ratio_of_sums(*losses(120, seed), resamples=1000, seed=seed)
        covered += interval.low <= 1.03 <= interval.high
    assert 0.91 <= covered / trials <= 0.98


def alike(documents: int, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of which those of a document are lost alike."""
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(documents), rows)
    below = random.gamma(2.0, 30.0, documents * rows)
    return below * random.normal(1.03, 0.15, documents)[groups], below, groups


def test_rows_of_a_document_are_drawn_together() -> None:
    """By themselves they would be taken for more than is known."""
    above, below, groups = alike(60, 8, 0)
    apart, together = ratio_of_sums(above, below), ratio_of_sums(above, below, groups=groups)
    assert together.measured == apart.measured
    assert together.high - together.low > 2 * (apart.high - apart.low)
    alone = [0, 0]
    for seed in range(200):
        above, below, groups = alike(80, 5, seed)
        for index, of in enumerate((None, groups)):
            interval = ratio_of_sums(above, below, groups=of, resamples=500, seed=seed)
            alone[index] += interval.low <= 1.03 <= interval.high
    assert alone[0] / 200 < 0.8
    assert 0.89 <= alone[1] / 200 <= 0.99


def test_names_and_order_of_documents_do_not_matter() -> None:
    above, below, groups = alike(9, 4, 3)
    found = ratio_of_sums(above, below, groups=groups)
    renamed = ratio_of_sums(above, below, groups=100 - 7 * groups)
    assert found.measured == renamed.measured
    assert (found.low, found.high) == pytest.approx((renamed.low, renamed.high), abs=0.01)
    order = np.random.default_rng(0).permutation(len(above))
    assert ratio_of_sums(above[order], below[order], groups=groups[order]) == pytest.approx(found)
    by_itself = ratio_of_sums(above, below, groups=np.arange(len(above)))
    assert by_itself == ratio_of_sums(above, below)


def test_same_seed_same_interval_other_seed_other_interval() -> None:
    above, below = losses(30)
    assert ratio_of_sums(above, below, seed=3) == ratio_of_sums(above, below, seed=3)
    assert ratio_of_sums(above, below, seed=3) != ratio_of_sums(above, below, seed=4)


@pytest.mark.parametrize(("first", "second"), [((3,), (4,)), ((0,), (0,)), ((2, 2), (2, 2))])
def test_rows_that_do_not_pair_are_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="paired rows"):
        ratio_of_sums(np.ones(first), np.ones(second))

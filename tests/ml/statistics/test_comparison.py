"""Comparing trials: exact values of Student's intervals, what is paired with what, and what is not said."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tasks.ml.statistics.comparison import Estimate, Trial, mean, of_scores, ratio, summarize, typical

T = {2: 12.706204736432095, 3: 4.302652729911275}
"""Student's t at 97.5 %, by number of seeds (one more than the degrees of freedom)."""


def trial(seed: int = 0, **changes: Any) -> Trial:
    values: dict[str, Any] = {
        "samples_per_s": 100.0, "training_s": 4.0, "peak_memory_mb": 500.0, "scores": (1, 1, 0, 1),
        "curve": ((1.0, 0.6), (2.0, 0.8), (3.0, 0.7)), "about": {},
    }  # fmt: skip
    return Trial(seed=seed, **values | changes)


def test_the_interval_of_a_mean_is_students() -> None:
    assert mean([1.0, 3.0]) == Estimate(2.0, pytest.approx(2 - T[2]), pytest.approx(2 + T[2]))
    three = mean([1.0, 2.0, 6.0])
    half = T[3] * math.sqrt(7) / math.sqrt(3)
    assert (three.measured, three.low, three.high) == pytest.approx((3, 3 - half, 3 + half))
    narrower = mean([1.0, 3.0], confidence=0.5)
    assert (narrower.low, narrower.high) == pytest.approx((1, 3)), "t of one degree of freedom at 75 % is 1"


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    assert mean([7.0]) == Estimate(7.0, None, None)
    assert ratio([3.0], [2.0]) == Estimate(pytest.approx(1.5), None, None)
    with pytest.raises(ValueError, match="at least one"):
        mean([])


def test_a_ratio_is_paired_and_geometric() -> None:
    found = ratio([2.0, 16.0], [1.0, 2.0])
    spread = math.exp(T[2] * math.log(2))
    assert (found.measured, found.low, found.high) == pytest.approx((4, 4 / spread, 4 * spread))
    same = ratio([2.0, 20.0, 6.0], [1.0, 10.0, 3.0])
    assert (same.measured, same.low, same.high) == pytest.approx((2, 2, 2)), "what slows both is no spread"
    back = ratio([1.0, 2.0], [2.0, 16.0])
    assert (back.low, back.high) == pytest.approx((1 / found.high, 1 / found.low))


@pytest.mark.parametrize(("values", "baseline"), [([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0], [-1.0]), ([], [])])
def test_what_does_not_pair_up_is_refused(values: list[float], baseline: list[float]) -> None:
    with pytest.raises(ValueError, match=r"ratio|mean"):
        ratio(values, baseline)


def test_the_target_is_met_at_the_first_evaluation_at_or_above_it() -> None:
    assert trial().seconds_to(0.6) == 1
    assert trial().seconds_to(0.65) == 2
    assert trial().seconds_to(0.81) is None
    assert trial().quality == 0.75


def test_a_choice_is_compared_seed_by_seed() -> None:
    baseline = [trial(seed, samples_per_s=10.0 * (seed + 1), peak_memory_mb=400.0) for seed in (0, 1)]
    ours = [trial(seed, samples_per_s=30.0 * (seed + 1), curve=((0.5, 0.9),)) for seed in (1, 0)]
    found = summarize(ours, baseline, target=0.8)
    assert found.faster is not None
    assert (found.faster.measured, found.faster.low, found.faster.high) == pytest.approx((3, 3, 3))
    assert found.sooner is not None
    assert found.sooner.measured == pytest.approx(4), "2 s of the baseline over 0.5 s"
    assert found.memory is not None
    assert found.memory.measured == pytest.approx(1.25)
    assert found.samples_per_s.measured == pytest.approx(30 * 2**0.5)
    assert found.seconds == Estimate(pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))
    assert (found.reached, found.peak_memory_mb) == (2, 500)


def test_no_interval_holds_what_cannot_be() -> None:
    found = typical([10.0, 30.0])
    assert found.low is not None
    assert 0 < found.low < found.measured == pytest.approx(300**0.5)
    half, most = [1.0, 0.0] * 5, [1.0] * 9 + [0.0]
    assert (of_scores([half, most]).low, of_scores([half, most]).high) == (0.0, 1.0)
    assert of_scores([half]) == Estimate(0.5)
    errors = of_scores([[1.0, -3.0], [1.0, -2.0]])
    assert errors.low is not None
    assert errors.low < errors.measured == -0.75, "scores of a regression may be below 0"


def test_a_mean_of_those_that_reached_the_target_alone_is_never_shown() -> None:
    baseline = [trial(0), trial(1)]
    found = summarize([trial(0), trial(1, curve=((1.0, 0.1),))], baseline, target=0.8)
    assert (found.reached, found.seconds, found.sooner) == (1, None, None)
    assert found.faster is not None
    slow = [trial(0, curve=((1.0, 0.1),)), trial(1)]
    against = summarize([trial(0), trial(1)], slow, target=0.8)
    assert against.seconds is not None
    assert against.sooner is None, "a baseline that did not reach it cannot be divided by"


def test_accuracy_is_paired_by_row_over_the_mean_of_seeds() -> None:
    baseline = [trial(seed, scores=(1, 0) * 50) for seed in (0, 1)]
    same = summarize([trial(seed, scores=(1, 0) * 50) for seed in (0, 1)], baseline, target=0.8).better
    assert same is not None
    assert same.measured == 0
    assert same.low is not None
    assert same.high is not None
    assert -0.05 < same.low < 0 < same.high < 0.05
    better = summarize([trial(0, scores=(1,) * 100), trial(1, scores=(1, 0) * 50)], baseline, target=0.8).better
    assert better is not None
    assert better.measured == 0.25, "one seed of two is right on the other half of the rows"
    assert better.low is not None
    assert 0.15 < better.low < 0.25


def test_the_baseline_is_not_compared_with_itself_and_a_seed_without_its_pair_not_at_all() -> None:
    baseline = [trial(0)]
    itself = summarize(baseline, baseline, target=0.8)
    assert (itself.faster, itself.sooner, itself.memory, itself.better) == (None, None, None, None)
    assert itself.seconds == Estimate(pytest.approx(2.0))
    unpaired = summarize([trial(1)], baseline, target=0.8)
    assert (unpaired.faster, unpaired.sooner, unpaired.better) == (None, None, None)
    both = summarize([trial(0, samples_per_s=200.0), trial(1, samples_per_s=900.0)], baseline, target=0.8)
    assert both.faster == Estimate(pytest.approx(2.0)), "seed 1 has no pair"

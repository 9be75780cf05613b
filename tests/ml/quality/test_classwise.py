"""What classes tell: the majority answer, chance on few rows, and a class that only the teacher finds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact

from tasks.ml.quality import classwise


def test_always_one_answer_is_no_better_than_itself() -> None:
    targets = np.array([0] * 197 + [1] * 3)
    standing = classwise.against_majority(classwise.tally(np.zeros_like(targets), targets, 2), 0)
    assert standing.gain.measured == 0
    assert standing.gain.low < 0 < standing.gain.high
    assert standing.others_p == 1
    assert standing.balanced_accuracy == 0.5


def test_three_rare_rows_found_among_two_hundred_are_not_chance_though_accuracy_cannot_tell() -> None:
    targets = np.array([0] * 197 + [1] * 3)
    standing = classwise.against_majority(classwise.tally(targets, targets, 2), 0)
    assert standing.gain.low < 0
    assert standing.others_p == pytest.approx(6 / (200 * 199 * 198))
    assert standing.balanced_accuracy == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_exact_test_is_fishers(seed: int) -> None:
    random = np.random.default_rng(seed)
    targets, predictions = random.integers(0, 3, 60), random.integers(0, 3, 60)
    standing = classwise.against_majority(classwise.tally(predictions, targets, 3), 1)
    other, called = targets != 1, predictions != 1
    table = [[(other & called).sum(), (other & ~called).sum()], [(~other & called).sum(), (~other & ~called).sum()]]
    assert standing.others_p == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
    assert standing.right == (targets == predictions).sum()
    assert standing.gain.measured == pytest.approx((targets == predictions).mean() - (targets == 1).mean())


def test_a_model_that_guesses_seldom_passes_for_one_that_reads() -> None:
    """Of 2,000 guessing models few have an interval above nothing: the level is the one that was asked for."""
    random, passed = np.random.default_rng(0), 0
    for _ in range(2000):
        targets, guesses = random.integers(0, 2, 50), random.integers(0, 2, 50)
        standing = classwise.against_majority(classwise.tally(guesses, targets, 2), 0)
        passed += standing.gain.low > 0
    assert passed / 2000 < 0.04


def test_describing_the_training_rows_leaves_out_rows_without_a_label() -> None:
    found = classwise.describe(["a", "b", "c"], np.array([1, -100, 1, 0, -100, -100]))
    assert found == {"labels": ["a", "b", "c"], "majority": 1, "majority_share": 2 / 3}


def test_a_class_that_is_lost_stands_out_and_one_that_flickers_does_not() -> None:
    random = np.random.default_rng(0)
    targets = np.repeat(np.arange(40), 3)  # many classes of few rows, one row in ten lost whatever its class
    flickering = np.where(random.random(targets.size) < 0.1, (targets + 1) % 40, targets)
    fates = classwise.fates(targets, flickering, targets, 40)
    assert len(fates) == 40
    assert not [c for c, fate in fates.items() if fate.is_halved and fate.churn_p < 0.05]

    targets = np.array([0] * 394 + [1] * 6)
    fate = classwise.fates(targets, np.zeros_like(targets), targets, 2)[1]
    assert (fate.rows, fate.teacher, fate.shipped, fate.lost, fate.gained) == (6, 6, 0, 6, 0)
    assert fate.is_halved
    assert fate.churn_p < 1e-6
    assert fate.mcnemar_p == pytest.approx(0.5**6)
    assert fate.change.measured == -1
    assert fate.change.high < -0.2


def test_what_the_teacher_never_found_cannot_be_lost() -> None:
    targets = np.array([0] * 90 + [1] * 10)
    always = np.zeros_like(targets)
    fate = classwise.fates(always, always, targets, 2)[1]
    assert (fate.teacher, fate.shipped, fate.is_halved) == (0, 0, False)

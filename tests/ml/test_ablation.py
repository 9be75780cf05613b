"""What a technique is worth: identities, directions, pairing by seed, and what counts as shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tasks.ml.ablation import Effect, Measured, compare, summarize
from tasks.ml.comparison import Estimate


def measured(seed: int, *, wrong: int = 100, apart: int = 50, n: int = 1000, **changes: Any) -> Measured:
    """A model that is wrong on the first rows."""
    correct, agrees = np.ones(n), np.ones(n)
    correct[:wrong], agrees[:apart] = 0.0, 0.0
    numbers = {"size_mb": 20.0, "latency_p50_ms": 2.0, "throughput_per_s": 900.0, **changes}
    return Measured(seed=seed, correct=correct, agrees=agrees, about={}, **numbers)


def test_a_technique_that_changes_nothing_has_no_effect() -> None:
    models = [measured(0), measured(1)]
    effect = compare(models, models)
    for name in ("accuracy", "agreement"):
        assert getattr(effect, name).measured == 0.0
    for name in ("smaller", "faster", "throughput"):
        assert getattr(effect, name) == Estimate(1.0, 1.0, 1.0)
    assert set(effect.signs().values()) == {0}


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_what_helps_is_above_and_what_harms_below(seeds: int) -> None:
    used = [
        measured(seed, wrong=180, apart=10, size_mb=10.0, latency_p50_ms=1.0, throughput_per_s=600.0)
        for seed in range(seeds)
    ]
    effect = compare(used, [measured(seed) for seed in range(seeds)])
    assert effect.accuracy.measured == pytest.approx(-0.08)
    assert effect.agreement.measured == pytest.approx(0.04)
    ratios = (effect.smaller.measured, effect.faster.measured, effect.throughput.measured)
    assert ratios == pytest.approx((2.0, 2.0, 600 / 900))
    assert effect.signs() == {"accuracy": -1, "agreement": 1, "size": 1, "latency": 1, "throughput": -1}
    turned = compare([measured(seed) for seed in range(seeds)], used)
    assert turned.signs() == {name: -sign for name, sign in effect.signs().items()}


def test_only_seeds_of_both_are_compared() -> None:
    effect = compare([measured(0), measured(1, size_mb=1.0)], [measured(0), measured(2, size_mb=99.0)])
    assert effect.smaller == Estimate(1.0)
    with pytest.raises(ValueError, match="no seed"):
        compare([measured(0)], [measured(1)])


def test_what_an_interval_leaves_open_is_not_shown() -> None:
    unsure = Effect(
        accuracy=Estimate(0.01, -0.002, 0.02), agreement=Estimate(0.01, 0.001, 0.02), smaller=Estimate(1.2, 1.1, 1.3),
        faster=Estimate(1.02), throughput=Estimate(0.9),
    )  # fmt: skip
    assert unsure.signs() == {"accuracy": 0, "agreement": 1, "size": 1, "latency": 0, "throughput": -1}


def test_a_summary_is_a_mean_over_seeds() -> None:
    found = summarize([measured(0, wrong=100, size_mb=10.0), measured(1, wrong=200, size_mb=12.0)])
    assert found.accuracy.measured == pytest.approx(0.85)
    assert found.size_mb.measured == 11.0
    assert summarize([measured(0)]).accuracy == Estimate(0.9)

"""What a technique is worth: identities, directions, pairing by seed, and what counts as shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tasks.ml.proof.ablation import UNCERTAIN, Claim, Effect, Measured, compare, summarize
from tasks.ml.runtime.timing import Pace
from tasks.ml.statistics.comparison import Estimate


def measured(
    seed: int,
    *,
    wrong: int = 100,
    apart: int = 50,
    n: int = 1000,
    size_mb: float = 20.0,
    latency_ms: Sequence[float] = (2.0,) * 15,
    rows_per_s: Sequence[float] = (900.0,) * 15,
) -> Measured:
    """A model that is wrong on the first rows."""
    correct, agrees = np.ones(n), np.ones(n)
    correct[:wrong], agrees[:apart] = 0.0, 0.0
    pace = Pace(tuple(latency_ms), tuple(rows_per_s))
    return Measured(seed=seed, scores=correct, agrees=agrees, size_mb=size_mb, pace=pace, about={})


def alone(used: Sequence[Measured], spared: Sequence[Measured]) -> Effect:
    return compare({"it": (used, spared)})["it"]


def test_a_technique_that_changes_nothing_has_no_effect() -> None:
    models = [measured(0), measured(1)]
    effect = alone(models, models)
    for name in ("quality", "agreement"):
        assert getattr(effect, name).measured == 0.0
    for name in ("smaller", "faster", "throughput"):
        assert getattr(effect, name) == Estimate(1.0, 1.0, 1.0)
    assert set(effect.signs().values()) == {0}


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_what_helps_is_above_and_what_harms_below(seeds: int) -> None:
    used = [
        measured(seed, wrong=180, apart=10, size_mb=10.0, latency_ms=[1.0] * 15, rows_per_s=[600.0] * 15)
        for seed in range(seeds)
    ]
    effect = alone(used, [measured(seed) for seed in range(seeds)])
    assert effect.quality.measured == pytest.approx(-0.08)
    assert effect.agreement.measured == pytest.approx(0.04)
    ratios = (effect.smaller.measured, effect.faster.measured, effect.throughput.measured)
    assert ratios == pytest.approx((2.0, 2.0, 600 / 900))
    assert effect.signs() == {"quality": -1, "agreement": 1, "size": 1, "latency": 1, "throughput": -1}
    turned = alone([measured(seed) for seed in range(seeds)], used)
    assert turned.signs() == {name: -sign for name, sign in effect.signs().items()}


def test_only_seeds_of_both_are_compared() -> None:
    effect = alone([measured(0), measured(1, size_mb=1.0)], [measured(0), measured(2, size_mb=99.0)])
    assert effect.smaller == Estimate(1.0)
    with pytest.raises(ValueError, match="no seed"):
        alone([measured(0)], [measured(1)])


def test_a_machine_that_changes_its_pace_does_it_to_both() -> None:
    slow_later = np.array([1.0, 1.0, 1.0, 1.9, 2.0, 2.1, 1.5])
    effect = alone([measured(0, latency_ms=0.5 * slow_later)], [measured(0, latency_ms=slow_later)])
    assert effect.faster == Estimate(*[pytest.approx(2.0)] * 3)
    wavering = measured(0, latency_ms=[0.9, 1.2, 1.1, 1.3, 0.8, 1.2, 0.9])
    unsure = alone([wavering], [measured(0, latency_ms=[1.0, 1.0, 1.2, 1.1, 1.3, 0.9, 1.2])])
    assert unsure.faster.low < 1 < unsure.faster.high
    assert unsure.signs()["latency"] == 0


def test_thirty_three_techniques_that_change_nothing_are_not_credited_with_anything() -> None:
    """At 95 % each, half a dozen of so many comparisons would be claimed; together hardly ever one."""
    false = 0
    for number in range(20):
        random = np.random.default_rng(number)

        def one(random: np.random.Generator = random) -> Measured:
            drawn = measured(0, latency_ms=random.lognormal(0.7, 0.05, 15), rows_per_s=random.lognormal(7, 0.05, 15))
            coins = random.random((2, 400)) < 0.85
            return replace(drawn, scores=coins[0] * 1.0, agrees=coins[1] * 1.0)

        effects = compare({str(index): ([one()], [one()]) for index in range(33)})
        false += sum(sign != 0 for effect in effects.values() for sign in effect.signs().values())
        assert all(claim.confidence > 0.999 for effect in effects.values() for claim in effect.claims.values())
    assert false <= 3


def test_beside_others_a_claim_needs_more() -> None:
    """A difference that would be shown alone is not, where it is one of a hundred; what is sure stays so."""
    same, slightly, much = measured(0), measured(0, wrong=88), measured(0, wrong=60)
    assert alone([slightly], [same]).signs()["quality"] == 1
    among = {str(index): ([same], [same]) for index in range(33)} | {"slightly": ([slightly], [same])}
    together = compare(among | {"much": ([much], [same])})
    assert together["slightly"].signs()["quality"] == 0
    assert together["much"].signs()["quality"] == 1
    low = together["slightly"].quality.low
    assert low is not None
    assert low < 0


def test_agreement_is_compared_on_rows_of_which_it_is_told() -> None:
    """Models whose vocabularies differ read some rows as other tokens than their teacher does."""
    used, spared = measured(0, apart=10), measured(0, apart=50)
    used.agrees[:10] = np.nan
    spared.agrees[900:] = np.nan
    effect = alone([used], [spared])
    assert effect.agreement is not None
    assert effect.agreement.measured == pytest.approx(40 / 890)
    assert used.metrics()["agreement_with_teacher"] == 1.0
    assert summarize([used]).agreement == Estimate(1.0)
    used.agrees[:] = np.nan
    effect = alone([used], [spared])
    assert effect.agreement is None
    assert effect.signs()["agreement"] == 0
    assert effect.claims.keys() == {*UNCERTAIN} - {"agreement"}
    assert "agreement_with_teacher" not in used.metrics()
    assert summarize([used]).agreement is None


def test_rounds_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds"):
        alone([measured(0, latency_ms=[1.0, 1.0])], [measured(0)])


def test_what_an_interval_leaves_open_is_not_shown() -> None:
    unsure = Effect(
        quality=Estimate(0.01, -0.002, 0.02), agreement=Estimate(0.01, 0.001, 0.02), smaller=Estimate(1.2, 1.1, 1.3),
        faster=Estimate(1.02), throughput=Estimate(0.8),
        claims={name: Claim(0.0, 0.0, 0.95) for name in UNCERTAIN},
    )  # fmt: skip
    assert unsure.signs() == {"quality": 0, "agreement": 1, "size": 1, "latency": 0, "throughput": -1}
    slightly = replace(unsure, faster=Estimate(1.09, 1.03, 1.15), throughput=Estimate(0.95, 0.94, 0.96))
    assert {slightly.signs()[name] for name in ("latency", "throughput")} == {0}, "two processes differ as much"


def test_a_summary_is_a_mean_over_seeds() -> None:
    found = summarize([measured(0, wrong=100, size_mb=10.0), measured(1, wrong=200, size_mb=12.0)])
    assert found.quality.measured == pytest.approx(0.85)
    assert found.size_mb.measured == 11.0
    assert summarize([measured(0)]).quality == Estimate(0.9)

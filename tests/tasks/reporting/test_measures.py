"""How quality is said."""

from __future__ import annotations

import pytest

from tasks.reporting import measures


@pytest.mark.parametrize(
    ("metric", "difference", "said"),
    [
        ("minus_bits_per_byte", -0.0113, "+0.011"),
        ("minus_bits_per_byte", 0.02, "−0.020"),
        ("minus_bits_per_byte", 0.0, "±0.000"),
        ("minus_bits_per_byte", 0.0004, "±0.000"),
        ("accuracy", -0.0113, "−1.13 points"),
    ],
)
def test_a_difference_is_short_enough_to_stand_beside_its_value(metric: str, difference: float, said: str) -> None:
    assert measures.of(metric).difference(difference).replace("\u202f", " ").replace("\u00a0", " ") == said

"""What parity allows: a row that its company moved, and no row that is off by itself; shapes that the split lacks."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.ml.runtime import parity

FOUND = {
    "n": 50, "label_flips": 0, "shape_rows": 18, "shape_flips": 0, "non_finite": 0, "shapes": [[8, 32]],
    "max_abs_error": 0.0712, "allowed_abs_error": 0.0611, "alone_abs_error": 2.4e-7,
}  # fmt: skip


def test_a_row_that_is_exact_alone_may_be_moved_by_its_batch() -> None:
    parity.require(FOUND, max_flips=0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"alone_abs_error": 0.07},
        {"max_abs_error": 0.25},
        {"shape_flips": 1},
        {"label_flips": 1},
        {"non_finite": 1},
    ],
)
def test_everything_that_is_measured_is_held_against_a_limit(changes: dict[str, Any]) -> None:
    with pytest.raises(parity.ParityError):
        parity.require(FOUND | changes, max_flips=0.01)


def test_rows_of_other_shapes_are_real_tokens_of_full_length() -> None:
    rows = [[2, 10, 11, 3], [2, 12, 3]]
    made = parity.stretched(rows, 3, 6)
    assert made == [[2, 10, 11, 3, 2, 12], [2, 12, 3, 2, 10], [2, 10, 11, 3]]
    assert parity.other_shapes(64) == [(1, 1), (1, 2), (3, 7), (5, 33), (8, 64)]
    assert max(length for _, length in parity.other_shapes(4)) == 4

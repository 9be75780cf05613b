"""What messages quote: whole where it is short, on one line and short where it is not."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.ml.quoting import quoted

DEEP: Any = [[[[["deep"]]]]]


@pytest.mark.parametrize(
    ("value", "longest", "shown"),
    [
        ("spam", 4, "'spam'"),
        ("spams", 4, "'spa…'"),
        ("it's", 9, '"it\'s"'),
        ("a\nb", 9, "'a\\nb'"),
        ("\0" * 9, 9, "'\\x00\\x00\\…"),
        (124, 9, "124"),
        (DEEP, 20, "[[[[...]]]]"),
        ({"a": 1}, 9, "{'a': 1}"),
        ({"a": "b" * 90}, 9, "{'a': 'b…"),
    ],
)
def test_what_is_left_out_is_an_ellipsis(value: Any, longest: int, shown: str) -> None:
    assert quoted(value, longest) == shown

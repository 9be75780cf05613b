"""Rows of tokens, of which some count and others are only read before them, such as a question before its answer.

A row is a sequence of token ids. All of them count, but those that a row of the kind ``Partly`` says do not. It goes
wherever other rows go; who computes what a model loses or learns asks ``counted``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Partly(list[int]):
    """Token ids, of which some do not count.

    A part or a copy of it is a plain list, of which all do.

    Attributes:
        counted: 1 for each token that counts, and 0 for the others.
    """

    def __init__(self, ids: Iterable[int], counted: Iterable[int]) -> None:
        super().__init__(ids)
        self.counted = [int(one) for one in counted]
        assert len(self.counted) == len(self)


def counted(row: Sequence[int]) -> Sequence[int]:
    """1 for each token of a row that counts, and 0 for the others."""
    return row.counted if isinstance(row, Partly) else [1] * len(row)


def row(ids: list[int], counted: Sequence[int]) -> list[int]:
    """A row of which those tokens count."""
    return ids if all(counted) else Partly(ids, counted)

"""What a problem makes of a source's labels: what is learned, and which rows are alike when they are divided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.ml.data.tables import Table


@dataclass(frozen=True)
class Targets:
    """Checked labels.

    Attributes:
        tables: the labelled splits of the source, with labels as they are meant.
        names: what the outputs of a model are called, in their order.
        strata: kinds of rows of which every split is to have its share, in the order in which people read them.
        stratum: the kind of a row with this label.
        required: kinds without which nothing can be learned.
        settle: the label of a text that has several; "" where nobody knows which of them is right.
        measure: numbers that lead from labels to targets and back, of the labels of the rows that are learned from.
        encode: the target of a row with this label, by these numbers.
        missing: the target of a row without a label.
        dtype: of targets.
        of_text: the label that a text has of itself, where nobody tells it: one that is too long for a row then becomes
            several, each with its own; ``None`` where labels are told, and texts are cut.
    """

    tables: Mapping[str, Table]
    names: Sequence[str]
    strata: Sequence[str]
    stratum: Callable[[str], str]
    required: Sequence[str]
    settle: Callable[[Sequence[str]], str]
    measure: Callable[[Sequence[str]], Mapping[str, float]]
    encode: Callable[[str, Mapping[str, float]], float]
    missing: float
    dtype: Any
    of_text: Callable[[str], str] | None = None

    def array(self, labels: Sequence[str], units: Mapping[str, float]) -> np.ndarray:
        """Targets (N,) of rows with these labels, "" where there is none, by what ``measure`` gave."""
        return np.array([self.encode(label, units) if label else self.missing for label in labels], dtype=self.dtype)


def classes(tables: Mapping[str, Table], names: Sequence[str], *, missing: int) -> Targets:
    """Each name is a class: a kind of rows, and its place among the names the target."""
    indices = {name: index for index, name in enumerate(names)}
    return Targets(
        tables=tables,
        names=names,
        strata=names,
        stratum=str,
        required=names,
        settle=lambda labels: "",
        measure=lambda labels: {},
        encode=lambda label, units: indices[label],
        missing=missing,
        dtype=np.int64,
    )

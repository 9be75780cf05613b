"""What a problem makes of a source's labels: what is learned, and which rows are alike when they are divided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
        encode: the target of a row with this label.
        missing: the target of a row without a label.
        dtype: of targets.
        units: numbers that lead from a target back to a label, where its name among the outputs does not.
    """

    tables: Mapping[str, Table]
    names: Sequence[str]
    strata: Sequence[str]
    stratum: Callable[[str], str]
    encode: Callable[[str], float]
    missing: float
    dtype: Any
    units: Mapping[str, float] = field(default_factory=dict)

    def array(self, labels: Sequence[str]) -> np.ndarray:
        """Targets (N,) of rows with these labels, "" where there is none."""
        return np.array([self.encode(label) if label else self.missing for label in labels], dtype=self.dtype)


def classes(tables: Mapping[str, Table], names: Sequence[str], *, missing: int) -> Targets:
    """Each name is a class: a kind of rows, and its place among the names the target."""
    indices = {name: index for index, name in enumerate(names)}
    return Targets(tables, names, names, str, indices.__getitem__, missing, np.int64)

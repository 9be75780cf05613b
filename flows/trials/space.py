"""The space that a search looks through: which fields vary, and in which steps. Plain data.

Steps are coarse on purpose: variations that agree in a stage's config and in all before it share what it made.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows import preflight
from flows.recipe import Recipe
from flows.trials.branch import value_of, variation
from tasks.contracts.base import FeatherweightError
from tasks.ml.models.inspection import Inspection
from tasks.quantize import EmbeddingScheme, Scheme

Values = tuple[Any, ...]
Point = dict[str, Any]
"""A value for each dimension, by the field's path."""

GROUPS = ("distillation", "pruning", "quantization", "export")
"""Parts of a recipe that may vary: what comes before them is the teacher, what comes after them judges."""


def depths(layers: int) -> Values:
    """Up to six numbers of layers, spread evenly."""
    return tuple(sorted({math.ceil(layers * step / min(layers, 6)) for step in range(1, min(layers, 6) + 1)}))


def fractions(units: int) -> Values:
    """Quarters, without those that keep as many of so few units as another does."""
    kept = {max(1, round(units * quarter / 4)): quarter / 4 for quarter in (4, 3, 2, 1)}
    return tuple(sorted(kept.values()))


@dataclass(frozen=True)
class Dimension:
    """One field that varies."""

    field: str
    """Path in the recipe."""
    values: Callable[[Inspection], Values]
    """From least to most where there is an order."""


SPACE = (
    Dimension("distillation.layers", lambda base: depths(base.config["num_hidden_layers"])),
    Dimension("pruning.width.target_speedup", lambda base: (1.3, 1.6, 2.0, 2.5)),
    Dimension("pruning.width.keep_ffn", lambda base: (0.25, 0.5, 0.75, 1.0)),
    Dimension("pruning.width.keep_heads", lambda base: fractions(base.config["num_attention_heads"])),
    Dimension("pruning.keep_vocabulary", lambda base: (0.25, 0.5, 1.0)),
    Dimension("quantization.scheme", lambda base: (Scheme.NONE.value, Scheme.INT8_DYNAMIC.value)),
    Dimension("quantization.embeddings", lambda base: tuple(scheme.value for scheme in EmbeddingScheme)),
)
"""A new dimension is a line here. Those whose field a recipe does not have are left out."""


@dataclass(frozen=True)
class Space:
    """The grid of one search."""

    values: Mapping[str, Values]
    """Of each dimension, by the field's path."""

    def points(self) -> Iterator[Point]:
        """Every point, in the order of the grid."""
        for combination in itertools.product(*self.values.values()):
            yield dict(zip(self.values, combination, strict=True))

    def __len__(self) -> int:
        return math.prod(len(values) for values in self.values.values())

    def nearest(self, recipe: Recipe) -> Point:
        """The point that the recipe itself describes; where its value is not in the grid, the one next to it."""
        return {path: _nearest(value_of(recipe, path), values) for path, values in self.values.items()}


def is_ordered(values: Sequence[Any]) -> bool:
    """Whether more and less mean something among the values."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _nearest(value: Any, values: Values) -> Any:
    if value in values:
        return value
    return min(values, key=lambda one: abs(one - value)) if is_ordered(values) else values[0]


def of(recipe: Recipe, base: Inspection, wanted: Mapping[str, Sequence[Any]]) -> Space:
    """Makes the grid: each dimension of ``SPACE`` with the recipe's own value among its steps, or what was asked for.

    Steps that cannot be taken with the base model are left out.

    Args:
        wanted: values by field, instead of those of ``SPACE`` or of further fields; one value keeps a field fixed.

    Raises:
        FeatherweightError: a field that was asked for may not vary, or a value is not right for it.
    """
    found: dict[str, Values] = {}
    for dimension in SPACE:
        if (own := value_of(recipe, dimension.field)) is None:
            continue
        values = dimension.values(base)
        if own not in values and is_ordered(values):
            values = tuple(sorted((*values, own)))
        possible = [value for value in values if value == own or _is_possible(recipe, base, dimension.field, value)]
        found[dimension.field] = tuple(possible) or (own,)
    for path, asked in wanted.items():
        found[path] = checked(recipe, base, path, asked)
    return Space(found)


def _is_possible(recipe: Recipe, base: Inspection, path: str, value: Any) -> bool:
    try:
        return not any(preflight.objections(variation(recipe, {path: value}), base))
    except FeatherweightError:
        return False


def checked(recipe: Recipe, base: Inspection, path: str, values: Sequence[Any]) -> Values:
    """Looks whether the recipe may have each of these values there, and returns them without repetition.

    Args:
        base: what they are to be used with.

    Raises:
        FeatherweightError: it may not.
    """
    if path.partition(".")[0] not in GROUPS or "." not in path:
        raise FeatherweightError(
            f"search: space: {path}: only fields of {', '.join(GROUPS)} vary, for example pruning.keep_vocabulary"
        )
    if not values:
        raise FeatherweightError(f"search: space: {path}: name at least one value, for example {path}=[0.5, 0.25]")
    for value in values:
        preflight.require(preflight.objections(variation(recipe, {path: value}, source="search: space"), base))
    unique = tuple(dict.fromkeys(values))
    return tuple(sorted(unique)) if is_ordered(unique) else unique

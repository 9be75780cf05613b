"""From what a recipe is made of to the recipe: each layer lies over those before it, and a goal below its own layer.

Imports ``Recipe`` only to validate, because that imports Prefect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from pydantic import ValidationError

from flows.command.recipe_fields import did_you_mean, explain, groups
from tasks.contracts.base import FeatherweightError
from tasks.ml.quoting import quoted

if TYPE_CHECKING:
    from flows.recipe import Recipe


class Layer(NamedTuple):
    """Fields that are written in one place."""

    origin: str
    """What a person calls the place."""
    values: dict[str, Any]


class Resolved(NamedTuple):
    """All fields that are set, and by whom."""

    values: dict[str, Any]
    origins: dict[str, str]
    """By the field's path; what is not among them is as it is by default."""


def resolve(layers: Sequence[Layer], source: str = "recipe") -> Resolved:
    """Puts layers over each other. A layer's goal wins over those before it, and its fields win over its goal.

    Args:
        source: what errors call it all.

    Raises:
        FeatherweightError: there is no such goal, or the base model that it is for cannot be looked at.
    """
    found = Resolved({}, {})
    for layer in layers:
        values = dict(layer.values)
        goal = values.pop("goal", None)
        if goal is not None:
            name = next((one.values["base_model"] for one in reversed(layers) if "base_model" in one.values), None)
            _put(found, _of_goal(goal, name, source), f"goal {goal}")
        _put(found, values, layer.origin)
    return found


def _of_goal(goal: Any, base_model: Any, source: str) -> dict[str, Any]:
    from flows import goals
    from flows.recipe import Recipe
    from tasks.ml.models import inspection, locators

    if goal not in list(goals.Goal):
        hint = did_you_mean(goal, list(goals.Goal)) if isinstance(goal, str) else ""
        raise FeatherweightError(f"{source}: goal: {quoted(goal)} is none of {', '.join(goals.Goal)}{hint}")
    name = Recipe.model_fields["base_model"].default if base_model is None else base_model
    if not isinstance(name, str):
        raise FeatherweightError(f"{source}: base_model: must be text (got {quoted(name)})")
    # Shapes and the tokenizer's kind are all that is asked; a run looks through the weights itself.
    return goals.fields(goals.Goal(goal), inspection.inspect(locators.locate(name)))


def _put(found: Resolved, values: dict[str, Any], origin: str) -> None:
    """Writes fields over those that were found."""

    def put(target: dict[str, Any], fields: dict[str, Any], *above: str) -> None:
        for name, value in fields.items():
            path = (*above, name)
            is_group = isinstance(value, dict)
            if not (is_group and isinstance(target.get(name), dict) and _one_kind(path, {*target[name], *value})):
                target[name] = {} if is_group else value
                for other in [one for one in found.origins if (one + ".").startswith(".".join(path) + ".")]:
                    del found.origins[other]
            if is_group:
                put(target[name], value, *path)
            else:
                found.origins[".".join(path)] = origin

    put(found.values, values)


def _one_kind(path: Sequence[str], names: set[str]) -> bool:
    """Whether fields may stand in the same group: one that comes in several kinds has those of one kind."""
    kinds = groups(path)
    return len(kinds) < 2 or any(names <= kind.model_fields.keys() for kind in kinds)


def validate(layers: Sequence[Layer], name: str) -> Recipe:
    """Makes a ``Recipe`` of layers.

    Args:
        name: what errors call it.

    Raises:
        FeatherweightError: with one line per thing that is wrong.
    """
    return _validated(layers, name)[0]


def _validated(layers: Sequence[Layer], name: str) -> tuple[Recipe, dict[str, str]]:
    """The recipe, and the origins of what is written in it."""
    from flows.recipe import Recipe

    source = f"recipe {Path(name).name}"
    found = resolve(layers, source)
    try:
        return Recipe.model_validate(found.values), found.origins
    except ValidationError as error:
        raise FeatherweightError(*explain(error, source)) from None


def described(layers: Sequence[Layer], name: str) -> Resolved:
    """Every field of the recipe that layers make, with where each value comes from.

    Raises:
        FeatherweightError: as ``validate``.
    """
    recipe, written = _validated(layers, name)
    values = recipe.model_dump(mode="json")

    def origins(fields: dict[str, Any], *above: str) -> Iterator[tuple[str, str]]:
        for key, value in fields.items():
            path = ".".join([*above, key])
            if isinstance(value, dict):
                yield from origins(value, *above, key)
            else:
                yield path, written.get(path, "default")

    return Resolved(values, dict(origins(values)))


ORIGIN_COLUMN = 60


def as_yaml(recipe: Resolved) -> str:
    """A recipe as YAML, with the origin of each value beside it."""

    def lines(fields: dict[str, Any], *above: str) -> Iterator[str]:
        indent = "  " * len(above)
        for key, value in fields.items():
            if isinstance(value, dict):
                yield f"{indent}{key}:"
                yield from lines(value, *above, key)
            else:
                text = f"{indent}{yaml.safe_dump({key: value}, width=10**6, allow_unicode=True).rstrip()}"
                yield f"{text:<{ORIGIN_COLUMN}}  # {recipe.origins['.'.join([*above, key])]}"

    return "\n".join(lines(recipe.values))


def checked(recipe: Recipe | dict[str, Any]) -> Recipe:
    """Returns a recipe that came as fields, such as those of a form, as a ``Recipe``."""
    if not isinstance(recipe, dict):
        return recipe
    return validate([Layer("form", recipe)], str(recipe.get("name") or ""))

"""From what a recipe is made of to the recipe: each layer lies over those before it, and a goal below its own layer.

Imports ``Recipe`` only to validate, because that imports Prefect.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from flows.command import renamed
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
    from flows import goals, preflight
    from flows.recipe import Recipe

    if goal not in list(goals.Goal):
        hint = did_you_mean(goal, list(goals.Goal)) if isinstance(goal, str) else ""
        raise FeatherweightError(f"{source}: goal: {quoted(goal)} is none of {', '.join(goals.Goal)}{hint}")
    name = Recipe.model_fields["base_model"].default if base_model is None else base_model
    if not isinstance(name, str):
        raise FeatherweightError(f"{source}: base_model: must be text (got {quoted(name)})")
    return goals.fields(goals.Goal(goal), preflight.inspected(name))


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


def groups(path: Sequence[str], model: type[BaseModel] | None = None) -> list[type[BaseModel]]:
    """The groups of fields, more than one if it comes in several kinds, that may stand at a path of a recipe."""
    from flows.recipe import Recipe

    found: list[type[BaseModel]] = [model or Recipe]
    for name in path:
        kinds = [
            kind for one in found if name in one.model_fields for kind in _kinds(one.model_fields[name].annotation)
        ]
        found = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return found


def _kinds(annotation: Any) -> Iterator[Any]:
    """What a field may be, without marks."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        yield from _kinds(arguments[0])
    elif arguments:
        for one in arguments:
            yield from _kinds(one)
    else:
        yield annotation


def validate(layers: Sequence[Layer], name: str) -> Recipe:
    """Makes a ``Recipe`` of layers.

    Args:
        name: what errors call it.

    Raises:
        FeatherweightError: with one line per thing that is wrong.
    """
    from flows.recipe import Recipe

    source = f"recipe {Path(name).name}"
    try:
        return Recipe.model_validate(resolve(layers, source).values)
    except ValidationError as error:
        raise FeatherweightError(*explain(error, source)) from None


def described(layers: Sequence[Layer], name: str) -> Resolved:
    """Every field of the recipe that layers make, with where each value comes from.

    Raises:
        FeatherweightError: as ``validate``.
    """
    values = validate(layers, name).model_dump(mode="json")
    written = resolve(layers).origins

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


def explain(error: ValidationError, source: str, model: type[BaseModel] | None = None) -> Iterator[str]:
    """Says each thing that pydantic found, by the field's path and with what would be right.

    Args:
        model: what was validated; a ``Recipe`` if it is not said.
    """
    for found in error.errors(include_url=False):
        path = _path(found["loc"], model, is_known=found["type"] != "extra_forbidden")
        name, above = ".".join(path), groups(path[:-1], model)
        known = [field for group in above for field in group.model_fields]
        if model is None and (advice := renamed.advice(name, found.get("input"))):
            yield f"{source}: {name}: is a field of older recipes; {advice}"
        elif found["type"] == "extra_forbidden":
            hint = did_you_mean(path[-1], known) or f"; known keys are {', '.join(known)}"
            place = f"{'.'.join(path[:-1])}: " if path[:-1] else ""
            yield f"{source}: {place}unknown key {quoted(path[-1])}{hint}"
        elif found["type"] == "value_error":
            yield f"{source}: {': '.join([*path, str(found['ctx']['error'])])}"
        elif found["type"] == "model_type":
            yield f"{source}: {name}: must be a group of fields (got {quoted(found['input'])})"
        elif found["type"] == "string_pattern_mismatch":
            field = next(group.model_fields[path[-1]] for group in above if path[-1] in group.model_fields)
            meaning = " ".join((field.description or "").split())
            rule = f"{found['ctx']['pattern']} ({meaning})"
            yield f"{source}: {name}: {quoted(found['input'])} does not match {rule}"
        else:
            message = found["msg"].replace("Input should", "must", 1)
            yield f"{source}: {name}: {message} (got {quoted(found['input'])})"


def _path(location: Sequence[Any], model: type[BaseModel] | None, *, is_known: bool) -> list[str]:
    """A field's path, without the names that pydantic gives to the kinds of a group."""
    path: list[str] = []
    for place, part in enumerate(map(str, location)):
        above = groups(path, model)
        is_last = place == len(location) - 1
        if any(part in group.model_fields for group in above) or not above or (is_last and not is_known):
            path.append(part)
    return path


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name that is nearest to one that is not known, as the end of a sentence; empty if none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""

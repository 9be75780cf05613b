"""The fields of recipes and other configs: which there are, and what is wrong with those that are written.

Imports ``Recipe`` only when asked, because that imports Prefect.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from flows.command import renamed
from tasks.ml.quoting import quoted


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
    close = difflib.get_close_matches(name, list(map(str, known)), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""

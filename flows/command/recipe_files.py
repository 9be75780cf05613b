"""Recipes as people write them: found by name or path, changed by ``--set``, and explained when they are wrong.

Imports ``Recipe`` only to validate, because that imports Prefect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError

from tasks.contracts.base import FeatherweightError
from tasks.ml import paths
from tasks.ml.quoting import quoted

if TYPE_CHECKING:
    from flows.recipe import Recipe

READY = Path(__file__).parents[1] / "recipes"
MERGE, TEXT = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:str"
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
SOURCES = (("data", "source"), ("data", "unlabeled"))
MODELS = (
    ("base_model",),
    *((*group, "augmentation_model") for group in (("distillation",), ("pruning",), ("quantization", "training"))),
)
"""Fields that may hold paths."""


def ready_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in READY.glob("*.yaml"))


def description(name: str) -> str:
    """What a ready recipe says of itself in its first line."""
    first = (READY / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ")


def find(name: str) -> Path:
    """Finds a ready recipe by name, or a YAML file by path.

    Raises:
        FeatherweightError: there is neither.
    """
    if name in ready_names():
        return READY / f"{name}.yaml"
    path = paths.written(name, field="recipe")
    if path.is_file():
        return path
    if path.is_dir():
        raise FeatherweightError(f"recipe {quoted(name)} is a directory; name a YAML file in it")
    if "://" in name:
        raise FeatherweightError(f"recipe {quoted(name)} is an address; recipes are read from files")
    if "/" in name or ".." in name or path.suffix:
        raise FeatherweightError(
            f"recipe {quoted(name)}: no such file (looked for {str(path.absolute())!r}); "
            f"ready recipes are {', '.join(ready_names())}"
        )
    raise FeatherweightError(
        f"recipe {quoted(name)}: no ready recipe and no file has this name{_did_you_mean(name, ready_names())}; "
        f"ready recipes are {', '.join(ready_names())}"
    )


def load(name: str, changes: Sequence[str] = ()) -> Recipe:
    """Reads and validates a recipe.

    Args:
        name: a ready recipe's name, or the path of a YAML file.
        changes: ``key.path=value`` each, applied in order; values are YAML.

    Raises:
        FeatherweightError: with one line per thing that is wrong.
    """
    return validate(read(name, changes), name)


def read(name: str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a recipe's fields and applies the changes; does not look at what they mean.

    Relative paths count from the folder of the recipe's file, and those in changes from where the command is run.
    """
    path = find(name)
    values = _read_mapping(path)
    if path.parent != READY:
        _count_from(path.parent, values)
    for change in changes:
        _apply(values, change)
    return values


def validate(values: dict[str, Any], name: str) -> Recipe:
    """Makes a ``Recipe`` of fields; ``name`` is what errors call it."""
    from flows.recipe import Recipe

    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise FeatherweightError(*explain(error, f"recipe {Path(name).name}")) from None


def checked(recipe: Recipe | dict[str, Any]) -> Recipe:
    """Returns a recipe that came as fields, such as those of a form, as a ``Recipe``."""
    if not isinstance(recipe, dict):
        return recipe
    return validate(recipe, str(recipe.get("name") or ""))


class _Loader(yaml.SafeLoader):
    """Refuses a key that is written twice, of which YAML would silently keep the last, and says where a value is none.

    Raises:
        yaml.MarkedYAMLError: with the place, whatever is wrong.
    """

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        tag: str = super().resolve(kind, value, implicit)
        # As in YAML 1.2: 2:4 is text, and not 124 written to the base of 60.
        return TEXT if kind is yaml.ScalarNode and ":" in value and tag in NUMBERS else tag

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                raise _refusal(key_node, "keys are not merged with <<; write the fields out")
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refusal(key_node, f"{quoted(key)} is no name of a field")
            if key in seen:
                raise _refusal(key_node, f"{quoted(key)} is written twice")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            kind = node.tag.rpartition(":")[2]
            text = node.value if isinstance(node, yaml.ScalarNode) else kind
            raise _refusal(
                node, f"{quoted(text)} is no {kind} ({quoted(str(error))}); quote it if it is text"
            ) from None


def _refusal(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _read_mapping(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping.

    Raises:
        FeatherweightError: the file cannot be read, is not UTF-8 YAML (with line and column), or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FeatherweightError(f"recipe {path.name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise FeatherweightError(f"recipe {path.name}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    values = _parse(text, f"recipe {path.name}")
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise FeatherweightError(f"recipe {path.name}: {found}; a recipe is a mapping, for example 'name: my-model'")
    return values


def _parse(text: str, source: str) -> Any:
    """Reads a YAML document; ``source`` is what errors call it.

    Raises:
        FeatherweightError: it is none, with line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise FeatherweightError(f"{source}: {where}{error.problem}") from None
    except yaml.YAMLError as error:
        raise FeatherweightError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise FeatherweightError(f"{source}: values are nested too deeply to be a recipe") from None


def _count_from(folder: Path, values: dict[str, Any]) -> None:
    """Puts a folder before the relative paths among a recipe's fields."""
    for *groups, name in (*SOURCES, *MODELS):
        fields: Any = values
        for group in groups:
            fields = fields.get(group) if isinstance(fields, dict) else None
        value = fields.get(name) if isinstance(fields, dict) else None
        if not isinstance(value, str) or folder == Path():
            continue
        prefix = "file:" if (*groups, name) in SOURCES else ""
        path = value.removeprefix(prefix)
        if not value.startswith(prefix) or not path or path.startswith(("~", "/")):
            continue
        if prefix:
            fields[name] = f"{prefix}{folder / path}"
        elif path.startswith(("./", "../")) or paths.written(str(folder / path), field=name).is_dir():
            fields[name] = str(folder / path) if folder.is_absolute() else f"./{folder / path}"  # no name on the hub


def assignments(changes: Sequence[str], option: str) -> dict[str, Any]:
    """Reads ``key.path=value`` each, values being YAML; ``option`` is what errors call them.

    Raises:
        FeatherweightError: one is not written like that.
    """
    found: dict[str, Any] = {}
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals or not all(path.strip().split(".")):
            raise FeatherweightError(f"{option} {quoted(change)}: write key.path=value, for example training.epochs=2")
        value = _parse(text, f"{option} {quoted(change)}")
        is_cut = isinstance(value, str) and text.lstrip().startswith(f"{value} ")  # by a # of YAML's remarks
        found[path.strip()] = text.strip() if is_cut else value
    return found


def _apply(values: dict[str, Any], change: str) -> None:
    """Sets ``key.path=value`` in nested mappings."""
    ((path, value),) = assignments([change], "--set").items()
    keys, target = path.split("."), values
    for key in keys[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise FeatherweightError(f"--set {quoted(change)}: {key} is a value, not a group of fields")
    target[keys[-1]] = value


def explain(error: ValidationError, source: str) -> Iterator[str]:
    """Says each thing that pydantic found, by the field's path in the recipe and with what would be right."""
    for found in error.errors(include_url=False):
        path = [str(part) for part in found["loc"]]
        if found["type"] == "extra_forbidden":
            known = list(_model(path[:-1]).model_fields)
            group = f"{'.'.join(path[:-1])}: " if path[:-1] else ""
            hint = _did_you_mean(path[-1], known) or f"; known keys are {', '.join(known)}"
            yield f"{source}: {group}unknown key {quoted(path[-1])}{hint}"
        elif found["type"] == "value_error":
            yield f"{source}: {': '.join([*path, str(found['ctx']['error'])])}"
        elif found["type"] == "model_type":
            yield f"{source}: {'.'.join(path)}: must be a group of fields (got {quoted(found['input'])})"
        elif found["type"] == "string_pattern_mismatch":
            meaning = " ".join((_model(path[:-1]).model_fields[path[-1]].description or "").split())
            rule = f"{found['ctx']['pattern']} ({meaning})"
            yield f"{source}: {'.'.join(path)}: {quoted(found['input'])} does not match {rule}"
        else:
            message = found["msg"].replace("Input should", "must", 1)
            yield f"{source}: {'.'.join(path)}: {message} (got {quoted(found['input'])})"


def _model(path: Sequence[str]) -> type[BaseModel]:
    from flows.recipe import Recipe

    model: type[BaseModel] = Recipe
    for name in path:
        annotation = model.model_fields[name].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return model


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""

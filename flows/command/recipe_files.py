"""Recipes as people write them: found by name or path, read with what they extend, changed by ``--set``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flows.command import recipe_fields, recipe_layers
from flows.command.recipe_layers import Layer
from tasks.contracts.base import FeatherweightError
from tasks.ml import paths
from tasks.ml.quoting import quoted

if TYPE_CHECKING:
    from flows.recipe import Recipe

DATA = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""Suffixes of what people name where a recipe is wanted."""

READY = Path(__file__).parents[1] / "recipes"
MERGE, TEXT = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:str"
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
SOURCES = (("data", "source"), ("data", "unlabeled"))
MODELS = (
    ("base_model",),
    ("teaching", "augmentation", "model"),
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
    hint = recipe_fields.did_you_mean(name, ready_names())
    raise FeatherweightError(
        f"recipe {quoted(name)}: no ready recipe and no file has this name{hint}; "
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
    return recipe_layers.validate(read(name, changes), name)


def read(name: str, changes: Sequence[str] = ()) -> list[Layer]:
    """Reads what a recipe is made of: the recipes that it extends, itself, and the changes; not what it means.

    Relative paths count from the folder of the recipe's file, and those in changes from where the command is run.

    Raises:
        FeatherweightError: a file cannot be read, is no YAML mapping, or extends itself.
    """
    layers = _chain(find(name), ())
    if changes:
        values: dict[str, Any] = {}
        for change in changes:
            _apply(values, change)
        if "extends" in values:
            raise FeatherweightError("--set extends: is for files; name that recipe instead")
        layers.append(Layer("--set", values))
    return layers


def _chain(path: Path, above: tuple[Path, ...]) -> list[Layer]:
    """A recipe's file below those that it extends, which ``above`` lead to it."""
    place = path.resolve()
    if place in above:
        way = " extends ".join(one.name for one in (*above[above.index(place) :], place))
        raise FeatherweightError(f"recipe {path.name}: extends itself: {way}")
    values = read_mapping(path)
    parent = values.pop("extends", None)
    if path.parent != READY:
        _count_from(path.parent, values)
    own = Layer(f"recipe {path.stem}" if path.parent == READY else path.name, values)
    if parent is None:
        return [own]
    if not isinstance(parent, str):
        raise FeatherweightError(f"recipe {path.name}: extends: name a ready recipe or a file (got {quoted(parent)})")
    is_ready = parent in ready_names() or path.parent == READY
    try:
        found = find(parent if is_ready else str(path.parent / paths.written(parent, field="extends")))
    except FeatherweightError as error:
        raise FeatherweightError(f"recipe {path.name}: extends: {error}") from None
    return [*_chain(found, (*above, place)), own]


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


def read_mapping(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping, whatever its fields mean.

    Raises:
        FeatherweightError: the file cannot be read, is not UTF-8 YAML (with line and column), or holds no mapping.
    """
    if path.suffix.lower() in DATA:
        raise FeatherweightError(
            f"recipe {path.name}: this is a file of data; 'featherweight init {path}' writes a recipe for it"
        )
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

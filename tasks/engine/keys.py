"""The cache key of a stage: its arguments, what they name outside the store, its code, and the numerics libraries.

What counts is found and not listed. Text in a stage's arguments is marked, or the stage is refused when it is defined:
``Outside`` if it names something whose content counts, ``PlainText`` if it is all there is to it. Code counts if it is
imported or named, from the stage's module on.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel

from tasks.contracts.base import Plain, StageConfig
from tasks.contracts.values import Bundle, Splits
from tasks.ml import digests

NUMERICS = (
    "torch", "triton", "transformers", "tokenizers", "safetensors", "onnx", "onnx-ir", "onnxscript", "ml-dtypes",
    "onnxruntime-gpu", "onnxruntime", "numpy", "scipy", "datasets", "pyarrow", "pandas",
    "torchao", "peft", "accelerate", "pytorch-optimizer",
)  # fmt: skip
"""Libraries whose version changes numbers, and so changes every cache key."""

ROOT = Path(__file__).parents[2]
"""The directory that holds the package ``tasks``."""

_MOVERS = ("disk", "exchange", "keys", "processes", "progress", "publish", "stage", "store", "tracking")
MOVERS = {"tasks.contracts.base", "tasks.contracts.values", *(f"tasks.engine.{name}" for name in _MOVERS)}
"""Modules that move bytes and show progress: they do not change what a stage computes."""


@dataclass(frozen=True)
class Outside:
    """Marks text that names something outside the store: a key holds the identity of its content, too.

    Attributes:
        identity: digest of what a text names; asked for any text but the empty one, which names nothing.
    """

    identity: Callable[[str], str]


_VALUES = (bool, int, float, types.NoneType, Bundle, Splits)
"""Types that say all there is to them; a digest is the identity of a content."""


def _opened(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type and the marks on it."""
    if typing.get_origin(kind) is Annotated:
        kind, *marks = typing.get_args(kind)
        return kind, tuple(marks)
    return kind, ()


def _unmarked(kind: Any, path: str, marks: Sequence[Any] = ()) -> Iterator[str]:
    """Where in a type text may stand, or anything, that is not marked."""
    kind, more = _opened(kind)
    marks = (*marks, *more)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    is_enum = isinstance(kind, type) and issubclass(kind, Enum)
    if isinstance(kind, type) and issubclass(kind, StageConfig):
        for name, field in kind.model_fields.items():
            yield from _unmarked(field.annotation, f"{path}.{name}", field.metadata)
    elif origin in (typing.Union, types.UnionType):
        for one in arguments:
            yield from _unmarked(one, path, marks)
    elif origin is not Literal and arguments:
        yield from _unmarked(_of_items(kind), path)
    elif kind is str:
        if not any(isinstance(mark, Outside | Plain) for mark in marks):
            yield path
    elif kind not in _VALUES and not is_enum and origin is not Literal:
        yield path


def _of_items(kind: Any) -> Any:
    """The type of what a sequence holds, or of the values of a mapping."""
    arguments = typing.get_args(kind)
    return arguments[0] if arguments[-1] is ... else arguments[-1]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(function, include_extras=True)
    return {name: hints.get(name, Any) for name in inspect.signature(function).parameters}


def require_marks(function: Callable[..., Any]) -> None:
    """Raises ``TypeError`` unless it is said of all text in a stage's arguments what it is."""
    for name, kind in _hints(function).items():
        for path in _unmarked(kind, name):
            raise TypeError(
                f"stage {function.__name__}: {path} may be any text; mark it Annotated[str, Outside(identity)] if it "
                "names something outside the store, so that its content counts in the cache key, or PlainText"
            )


def _outside(kind: Any, value: Any, path: str, marks: Sequence[Any] = ()) -> Iterator[tuple[str, str]]:
    """Identities of what a value of this type names outside the store, by where it does."""
    kind, more = _opened(kind)
    marks = (*marks, *more)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        for one in typing.get_args(kind):
            yield from _outside(one, value, path, marks)
    elif isinstance(value, StageConfig):
        for name, field in type(value).model_fields.items():
            yield from _outside(field.annotation, getattr(value, name), f"{path}.{name}", field.metadata)
    elif isinstance(value, Mapping | list | tuple) and typing.get_args(kind):
        items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, one in items:
            yield from _outside(_of_items(kind), one, f"{path}.{name}")
    elif isinstance(value, str) and value:
        yield from ((path, mark.identity(value)) for mark in marks if isinstance(mark, Outside))


def outside(config: StageConfig) -> list[tuple[str, str]]:
    """Identities of what the fields of a config name outside the store, by where they do."""
    return sorted(set(_outside(type(config), config, "")))


@functools.cache
def _source(module: str) -> list[tuple[str, Path]]:
    """The file of a module or package of ours, by its name; none of what is not ours, or is a name in a module.

    Found by path, because asking the import system would import the parents, and torch with them.
    """
    base = ROOT.joinpath(*module.split("."))
    return [(module, path) for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]


MODULE = re.compile(r"tasks(\.\w+)+")
"""Text that names a module of ours, as where it is to be executed by another process."""


def _imports(tree: ast.AST) -> set[str]:
    """Names below ``tasks`` that a module imports or writes anywhere, also in functions; some may be no modules."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE.fullmatch(node.value):
            names.add(node.value)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("tasks.")} - MOVERS


def _is_bare_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [statement for statement in body if not _is_bare_string(statement)]  # type: ignore[attr-defined]
    return tree


@functools.cache
def _read(path: Path) -> tuple[str, frozenset[str]]:
    """Digest of a file's syntax tree without docstrings, and the names that it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = frozenset(_imports(tree))
    return hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest(), imports


@functools.cache
def code_digest(module: str) -> str:
    """Digest of a stage's module and of all of ours that it imports or executes, directly or not, but for ``MOVERS``.

    Taken over syntax trees without docstrings, so that a comment or a reformatting keeps the cache.
    """
    seen: dict[str, str] = {}
    queue = {module: Path(str(sys.modules[module].__file__))}
    while queue:
        name, path = queue.popitem()
        if name in seen:
            continue
        seen[name], imports = _read(path)
        for imported in imports:
            queue.update(_source(imported))
    return digests.of_value(seen)


@functools.cache
def numerics_versions() -> dict[str, str]:
    """Installed versions of the numerics libraries, and of NVIDIA's, which they take from beside them."""
    found = (path.name for folder in sys.path for path in Path(folder).glob("nvidia_*.dist-info"))
    versions = dict(name.removesuffix(".dist-info").split("-", 1) for name in found)
    for name in NUMERICS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def as_json(value: Any) -> Any:
    """Arguments of a stage as what JSON can write; anything else is left as it is, and refused there."""
    if isinstance(value, BaseModel):
        return {"type": type(value).__name__, **value.model_dump(mode="json")}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value


def cache_key(function: Callable[..., Any], arguments: Mapping[str, Any], *, salt: str = "") -> str:
    """Digest of a stage's name, its inputs, config and what they name outside the store, its code and libraries."""
    hints = _hints(function)
    parts = {
        "stage": function.__name__,
        "arguments": as_json(arguments),
        "outside": sorted({pair for name, value in arguments.items() for pair in _outside(hints[name], value, name)}),
        "code": code_digest(function.__module__),
        "versions": numerics_versions(),
        "salt": salt,
    }
    return digests.of_value(parts)

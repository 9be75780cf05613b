"""What the docs and prefect.yaml say of the code, written from it by ``python -m flows.command.reference``.

The tree takes each file's clause from its first line; the recipe reference comes from the models; every ready recipe
becomes a deployment with all its fields, which is what the form in the Prefect UI starts from.
"""

from __future__ import annotations

import ast
import enum
import re
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo

from flows import goals
from flows.command import recipe_files
from flows.recipe import Recipe
from flows.servers import deployments

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "infra" / "docs"
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
LINE = 120
"""Characters of a line of prose."""
SIGNS = {Ge: "≥ {0.ge}", Gt: "> {0.gt}", Le: "≤ {0.le}", Lt: "< {0.lt}"}

CLAUSES = {
    "pyproject.toml": "packaging, linters, types, import contracts, tests",
    "flows/recipes": "ready recipes",
    "tasks/reporting/templates": "skeleton, styles and script of the report",
    "infra": "the environment, and why things are as they are",
    "infra/Dockerfile": "a worker or a server in a container, for CPU or GPU",
    "infra/compose.yaml": "a team's servers: PostgreSQL, object store, Prefect, MLflow, workers",
    "infra/constraints.txt": "the versions that were tested together",
    "infra/decisions": "short records of why",
    "infra/docs": "pages for who uses it and who changes it",
    "infra/images": "pictures for README.md and the pages",
    "infra/prefect.yaml": "deployments of the flows, with a nightly schedule to switch on",
    "infra/work-pool.json": "what a run may choose of the process that executes it: nothing",
    "infra/run": "runs any command in the project's own environment",
    "tasks/reporting": "from an outcome to a page; knows neither Prefect nor MLflow",
    "tests": "mirror the source; real servers, real models, no mocks",
}
"""Clauses of what has no first line to take one from."""

LONGEST_CLAUSE = 130
"""Characters after which a clause is cut at its colon."""

FOLDED = {"infra/images", "tests", "tasks/reporting/templates"}
"""Folders whose files are not listed."""


def tree() -> str:
    """Returns the tree of the repository as Markdown, a clause per file, taken from where the file says it itself."""
    lines = list(_branch(ROOT / name for name in ("pyproject.toml", "flows", "tasks", "tests", "infra")))
    width = max(len(name) for name, _ in lines)
    return "\n".join(["```", *(f"{name:<{width}}  {clause}" for name, clause in lines), "```"])


def _branch(paths: Iterable[Path], indent: str = "") -> Iterator[tuple[str, str]]:
    for path in sorted(paths, key=lambda path: (path.is_dir(), path.name)) if indent else paths:
        name = str(path.relative_to(ROOT))
        if path.name in ("__init__.py", "__pycache__") or path.name.startswith("."):
            continue
        yield f"{indent}{path.name}{'/' if path.is_dir() else ''}", CLAUSES.get(name) or _clause(path)
        if path.is_dir() and name not in FOLDED:
            yield from _branch(path.iterdir(), indent + "  ")


def _clause(path: Path) -> str:
    """Takes the first sentence of a docstring, heading or comment, without the name of the file."""
    first = path / "__init__.py" if path.is_dir() else path
    text = first.read_text(encoding="utf-8")
    if first.suffix == ".py":
        text = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    else:
        text = text.splitlines()[0].lstrip("#")
    text = re.sub(r"^\d+(\.| —)\s+", "", " ".join(text.replace("``", "").split()))
    text = re.sub(rf"^{re.escape(path.stem)}: ", "", text, flags=re.IGNORECASE)
    clause = re.split(r"\.(?:\s|$)", text)[0]
    if len(clause) > LONGEST_CLAUSE:
        clause = re.split(r"[;:]\s", clause)[0]
    assert clause, f"{path} does not say what it is in its first line"
    return clause


def reference(recipe: type[BaseModel] = Recipe) -> str:
    """Returns the reference as Markdown: the recipe's own fields, then a table per group."""
    return "\n".join(_model(recipe, "", "A recipe"))


def _model(model: type[BaseModel], prefix: str, title: str, about: str = "") -> Iterator[str]:
    rows = {name: field for name, field in model.model_fields.items() if not groups(field)}
    yield from (f"### {title}", "", textwrap.fill(" ".join(f"{about} {model.__doc__ or ''}".split()), LINE), "")
    if rows:
        yield from ("| field | default | allowed | meaning |", "|---|---|---|---|")
    for name, field in rows.items():
        meaning = " ".join((field.description or "").split())
        cells = (f"`{prefix}{name}`", _default(field), _allowed(field.annotation, field.metadata), meaning)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""
    for name, field in model.model_fields.items():
        for group, called in (found := groups(field)).items():
            title = f"`{prefix}{name}`"
            if len(found) > 1:
                title += f", one of {NUMBERS.get(len(found), len(found))}: {called}"
            if type(None) in _members(field.annotation):
                title += " (optional)"
            yield from _model(group, f"{prefix}{name}.", title, field.description or "")


def groups(field: FieldInfo) -> dict[type[BaseModel], str]:
    """Returns the groups of fields that a field may be, and what each is called: none of a plain value."""
    return {
        kind: called
        for kind, called in _members(field.annotation).items()
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    }


def _members(kind: Any) -> dict[Any, str]:
    """The members of a union, or the one that it is, without marks; and what each is called, by its tag or its name."""
    if get_origin(kind) in (Union, types.UnionType):
        return {member: called for one in get_args(kind) for member, called in _members(one).items()}
    if get_origin(kind) is Annotated:
        tag = next((mark.tag for mark in kind.__metadata__ if isinstance(mark, Tag)), "")
        return {member: tag or called for member, called in _members(get_args(kind)[0]).items()}
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", getattr(kind, "__name__", "").removesuffix("Config"))
    return {kind: words.lower()}


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    words = {True: "true", False: "false", None: "null", "": '""'}
    return f"`{words.get(value, value) if isinstance(value, bool | str | None) else value}`"


def _allowed(kind: Any, metadata: Iterable[Any] = ()) -> str:
    members = _members(kind)
    if len(members) > 1:
        return ", ".join(_allowed(one, metadata) for one in members)
    (kind,) = members
    if kind is type(None):
        return "null"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return ", ".join(f"`{member.value}`" for member in kind)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(kind))
    bounds = [SIGNS[type(bound)].format(bound) for bound in metadata if type(bound) in SIGNS]
    return ", ".join([getattr(kind, "__name__", str(kind)), *bounds])


def aims() -> str:
    """Returns what each goal sets, as Markdown."""
    names = (
        "`goal`",
        "layers",
        "token table",
        "`pruning.width`",
        "tokens",
        "steps",
        "points lost",
        "smaller",
        "faster",
    )
    rows = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for name, aim in goals.AIMS.items():
        width = ", ".join(f"`{field}: {value}`" for field, value in aim.width.items())
        table = f"{aim.rank or 'all'} columns, {aim.embeddings}"
        steps = " and ".join(f"{number:,}" for number in aim.steps)
        asked = f"≤ {100 * aim.max_quality_drop:g} | ≥ {aim.min_shrink:g}× | ≥ {aim.min_speedup:g}×"
        rows.append(f"| `{name}` | {aim.layers:.0%} | {table} | {width} | {aim.vocabulary:.0%} | {steps} | {asked} |")
    return "\n".join(rows)


def ready_recipes() -> str:
    """Returns a deployment of ``compress`` for each ready recipe, as YAML."""
    entries = [
        {
            "name": f"compress-{name}",
            "description": recipe_files.description(name),
            "tags": ["featherweight", "compress"],
            "entrypoint": "flows.compress.compress",
            "parameters": {"recipe": recipe_files.load(name).model_dump(mode="json")},
            "work_pool": {"name": deployments.POOL},
            "concurrency_limit": CONCURRENCY,
            "schedules": [NIGHTLY],
        }
        for name in recipe_files.ready_names()
    ]
    text = yaml.dump(entries, Dumper=_Plain, sort_keys=False, width=110, allow_unicode=True)
    return textwrap.indent(text, "  ").rstrip()


class _Plain(yaml.SafeDumper):
    """Writes what occurs twice out twice: a person edits one deployment at a time."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


CONCURRENCY = {"limit": 2, "collision_strategy": "ENQUEUE", "grace_period_seconds": 600}
"""What exceeds the limit waits its turn; to cancel it instead would let one stuck run cancel every night's."""
NIGHTLY = {"slug": "nightly", "cron": "0 2 * * *", "timezone": "Etc/UTC", "active": False}

SECTIONS: dict[Path, dict[str, Callable[[], str]]] = {
    DOCS / "architecture.md": {"tree": tree},
    DOCS / "recipe.md": {"goals": aims, "recipe reference": reference},
    deployments.FILE: {"ready recipes": ready_recipes},
}
MARKS = {".md": ("<!-- ", " -->"), ".yaml": ("  # ", "")}
"""What opens and closes a remark, by the ending of the file."""


def up_to_date(path: Path) -> str:
    """Returns a file's text with what stands between its markers replaced by what the code says now."""
    text = path.read_text(encoding="utf-8")
    opening, closing = MARKS[path.suffix]
    for name, write in SECTIONS[path].items():
        begin = f"{opening}{name}: begin (python -m flows.command.reference){closing}"
        end = f"{opening}{name}: end{closing}"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{write()}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    for path in SECTIONS:
        path.write_text(up_to_date(path), encoding="utf-8")

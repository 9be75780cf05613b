"""What a request to the scoring server may hold: its body read into texts, or refused with a status and a sentence.

Limits come before work: bytes, rows, characters of a text and depth are known before anything is tokenized, and a
sentence names the row. Shapes of JSON are those of MLflow's scoring protocol for a column ``text``, of strings, or
``messages``, of lists of objects with the strings ``role`` and ``content``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Iterable
from typing import Any

MAX_BYTES = 8 * 2**20
MAX_ROWS = 4096
MAX_CHARACTERS = 100_000
"""Of one text. What a model reads of a text ends long before, but the whole of it is tokenized."""

KINDS = ("dataframe_records", "dataframe_split", "instances", "inputs")
EXAMPLES = {
    "text": '{"dataframe_records": [{"text": "…"}]}',
    "messages": '{"dataframe_records": [{"messages": [{"role": "user", "content": "…"}]}]}',
}
"""Of a request, by the column that is read."""


class RefusalError(ValueError):
    """The request is not one that can be answered.

    Attributes:
        status: of HTTP: 400 wrong, 413 too large, 415 not a type that is read.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def texts(body: bytes, content_type: str, column: str = "text") -> list[Any]:
    """Reads the texts of a request, in their order.

    Args:
        content_type: the header's value; empty if there was none.
        column: one of ``EXAMPLES``.

    Raises:
        RefusalError: with a sentence that names the row, where it is one.
    """
    kind, text = _decoded(body, content_type, column)
    return _checked(READERS[kind](text, column), column)


def options(body: bytes, content_type: str, known: Collection[str]) -> dict[str, int]:
    """Reads what a request asks beside its texts: the ``params`` of MLflow's protocol, whole numbers of at least 1.

    Args:
        known: what may be asked.

    Raises:
        RefusalError: something else is asked.
    """
    kind, text = _decoded(body, content_type, "text")
    document = json.loads(text) if kind == "application/json" else {}
    params = document.get("params") or {} if isinstance(document, dict) else {}
    if not isinstance(params, dict) or not set(params) <= set(known):
        raise RefusalError(400, f"params: an object with {', '.join(known)} is wanted")
    for name, value in params.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RefusalError(400, f"params: {name} must be a whole number of at least 1")
    return params


def _decoded(body: bytes, content_type: str, column: str) -> tuple[str, str]:
    """The type of a body, one of ``READERS``, and its text."""
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    if any(parameter and parameter.replace('"', "") != "charset=utf-8" for parameter in parameters):
        raise RefusalError(415, f"Content-Type: {content_type[:100]!r} is not read; the only charset is utf-8")
    if kind not in READERS:
        found = f"{kind[:100]!r} is not read" if kind else "there is none"
        raise RefusalError(
            415, f"Content-Type: {found}; send application/json, for example {EXAMPLES[column]}, or text/csv"
        )
    try:
        return kind, body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusalError(400, f"byte {error.start} is not UTF-8") from None


def _checked(values: Any, column: str) -> list[Any]:
    """Makes sure that the column holds texts or messages, and not too many or too long ones."""
    if isinstance(values, str | dict) or not isinstance(values, Iterable):
        raise RefusalError(400, f"a list of texts is wanted, for example {EXAMPLES[column]}")
    found: list[Any] = []
    for row, value in enumerate(values):
        if row >= MAX_ROWS:
            raise RefusalError(413, f"more than {MAX_ROWS} rows; send them in several requests")
        parts = [value] if column == "text" else _contents(row, value, column)
        if not all(isinstance(part, str) for part in parts):
            raise RefusalError(400, f"row {row}: {column} must be a string, not {_kind(value)}")
        if (length := sum(map(len, parts))) > MAX_CHARACTERS:
            raise RefusalError(413, f"row {row}: {length} characters; a text may have {MAX_CHARACTERS}")
        for part in parts:
            if not part.isascii() and any("\ud800" <= character <= "\udfff" for character in part):
                raise RefusalError(400, f"row {row}: half of a surrogate pair is no character")
        found.append(value)
    return found


def _contents(row: int, value: Any, column: str) -> list[str]:
    """All that a list of messages says."""
    parts = value if isinstance(value, list) else []
    said = [one.get(name) if isinstance(one, dict) else None for one in parts for name in ("role", "content")]
    if not said or not all(isinstance(one, str) for one in said):
        raise RefusalError(
            400, f"row {row}: {column} must be a list of objects with role and content, which are strings"
        )
    return [str(one) for one in said]


KIND_NAMES = {bool: "a boolean", dict: "an object", float: "a number", int: "a number", list: "a list"}


def _kind(value: Any) -> str:
    return KIND_NAMES.get(type(value), "null" if value is None else "a string")


def _of_json(text: str, column: str) -> Any:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise RefusalError(400, f"no JSON: {error.msg}: line {error.lineno}, column {error.colno}") from None
    except (RecursionError, ValueError):  # nested too deeply; a number of thousands of digits
        raise RefusalError(400, "no JSON that can be read: nested too deeply, or a number of too many digits") from None
    kinds = [kind for kind in KINDS if kind in document] if isinstance(document, dict) else []
    if len(kinds) != 1:
        raise RefusalError(400, f"an object with one of {', '.join(KINDS)} is wanted, for example {EXAMPLES[column]}")
    value = document[kinds[0]]
    if kinds[0] == "dataframe_split":
        return _of_split(value, column)
    if isinstance(value, dict):
        if column not in value:
            raise RefusalError(400, f"{kinds[0]}: there is no {column!r}")
        found = value[column]
        is_talk = column == "messages" and isinstance(found, list) and any(isinstance(one, dict) for one in found)
        return [found] if isinstance(found, str) or is_talk else found
    if not isinstance(value, list):
        raise RefusalError(400, f"{kinds[0]}: a list is wanted, not {_kind(value)}")
    return (_of_record(row, record, column) for row, record in enumerate(value))


def _of_record(row: int, record: Any, column: str) -> Any:
    if not isinstance(record, dict):
        return record
    if column not in record:
        raise RefusalError(400, f"row {row}: there is no {column!r}")
    return record[column]


def _of_split(value: Any, column: str) -> Any:
    columns = value.get("columns") if isinstance(value, dict) else None
    rows = value.get("data") if isinstance(value, dict) else None
    if not isinstance(columns, list) or not isinstance(rows, list) or column not in columns:
        raise RefusalError(400, f"dataframe_split: an object with columns, {column!r} among them, and data is wanted")
    at = columns.index(column)
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(columns):
            raise RefusalError(400, f"row {number}: a list of {len(columns)} values is wanted, one for each column")
    return (row[at] for row in rows)


def _of_csv(text: str, column: str) -> Any:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if column not in header:
            raise RefusalError(400, f"text/csv: the first line names no column {column!r}")
        at = header.index(column)
        for number, row in enumerate(row for row in reader if row):  # an empty line is none; an empty text is ""
            if len(row) != len(header):
                raise RefusalError(400, f"row {number}: {len(row)} fields instead of {len(header)}")
            yield row[at]
    except csv.Error as error:
        raise RefusalError(400, f"text/csv, line {reader.line_num}: {error}") from None


READERS: dict[str, Callable[[str, str], Any]] = {"application/json": _of_json, "text/csv": _of_csv}

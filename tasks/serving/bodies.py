"""What a request to the scoring server may hold: its body read into texts, or refused with a status and a sentence.

Limits come before work: bytes, rows, characters of a text and depth are known before anything is tokenized, and a
sentence names the row. Shapes of JSON are those of MLflow's scoring protocol for a column ``text``.
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

COLUMN = "text"
KINDS = ("dataframe_records", "dataframe_split", "instances", "inputs")
EXAMPLE = '{"dataframe_records": [{"text": "…"}]}'


class RefusalError(ValueError):
    """The request is not one that can be answered.

    Attributes:
        status: of HTTP: 400 wrong, 413 too large, 415 not a type that is read.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def texts(body: bytes, content_type: str) -> list[str]:
    """Reads the texts of a request, in their order.

    Args:
        content_type: the header's value; empty if there was none.

    Raises:
        RefusalError: with a sentence that names the row, where it is one.
    """
    kind, text = _decoded(body, content_type)
    return _checked(READERS[kind](text))


def options(body: bytes, content_type: str, known: Collection[str]) -> dict[str, int]:
    """Reads what a request asks beside its texts: the ``params`` of MLflow's protocol, whole numbers of at least 1.

    Args:
        known: what may be asked.

    Raises:
        RefusalError: something else is asked.
    """
    kind, text = _decoded(body, content_type)
    document = json.loads(text) if kind == "application/json" else {}
    params = document.get("params") or {} if isinstance(document, dict) else {}
    if not isinstance(params, dict) or not set(params) <= set(known):
        raise RefusalError(400, f"params: an object with {', '.join(known)} is wanted")
    for name, value in params.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RefusalError(400, f"params: {name} must be a whole number of at least 1")
    return params


def _decoded(body: bytes, content_type: str) -> tuple[str, str]:
    """The type of a body, one of ``READERS``, and its text."""
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    if any(parameter and parameter.replace('"', "") != "charset=utf-8" for parameter in parameters):
        raise RefusalError(415, f"Content-Type: {content_type[:100]!r} is not read; the only charset is utf-8")
    if kind not in READERS:
        found = f"{kind[:100]!r} is not read" if kind else "there is none"
        raise RefusalError(415, f"Content-Type: {found}; send application/json, for example {EXAMPLE}, or text/csv")
    try:
        return kind, body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusalError(400, f"byte {error.start} is not UTF-8") from None


def _checked(values: Any) -> list[str]:
    """Makes sure that the column holds texts, and not too many or too long ones."""
    if isinstance(values, str | dict) or not isinstance(values, Iterable):
        raise RefusalError(400, f"a list of texts is wanted, for example {EXAMPLE}")
    found: list[str] = []
    for row, value in enumerate(values):
        if row >= MAX_ROWS:
            raise RefusalError(413, f"more than {MAX_ROWS} rows; send them in several requests")
        if not isinstance(value, str):
            raise RefusalError(400, f"row {row}: {COLUMN} must be a string, not {_kind(value)}")
        if len(value) > MAX_CHARACTERS:
            raise RefusalError(413, f"row {row}: {len(value)} characters; a text may have {MAX_CHARACTERS}")
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise RefusalError(400, f"row {row}: half of a surrogate pair is no character")
        found.append(value)
    return found


KIND_NAMES = {bool: "a boolean", dict: "an object", float: "a number", int: "a number", list: "a list"}


def _kind(value: Any) -> str:
    return KIND_NAMES.get(type(value), "null" if value is None else "a string")


def _of_json(text: str) -> Any:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise RefusalError(400, f"no JSON: {error.msg}: line {error.lineno}, column {error.colno}") from None
    except (RecursionError, ValueError):  # nested too deeply; a number of thousands of digits
        raise RefusalError(400, "no JSON that can be read: nested too deeply, or a number of too many digits") from None
    kinds = [kind for kind in KINDS if kind in document] if isinstance(document, dict) else []
    if len(kinds) != 1:
        raise RefusalError(400, f"an object with one of {', '.join(KINDS)} is wanted, for example {EXAMPLE}")
    value = document[kinds[0]]
    if kinds[0] == "dataframe_split":
        return _of_split(value)
    if isinstance(value, dict):
        if COLUMN not in value:
            raise RefusalError(400, f"{kinds[0]}: there is no {COLUMN!r}")
        column = value[COLUMN]
        return [column] if isinstance(column, str) else column
    if not isinstance(value, list):
        raise RefusalError(400, f"{kinds[0]}: a list is wanted, not {_kind(value)}")
    return (_of_record(row, record) for row, record in enumerate(value))


def _of_record(row: int, record: Any) -> Any:
    if not isinstance(record, dict):
        return record
    if COLUMN not in record:
        raise RefusalError(400, f"row {row}: there is no {COLUMN!r}")
    return record[COLUMN]


def _of_split(value: Any) -> Any:
    columns = value.get("columns") if isinstance(value, dict) else None
    rows = value.get("data") if isinstance(value, dict) else None
    if not isinstance(columns, list) or not isinstance(rows, list) or COLUMN not in columns:
        raise RefusalError(400, f"dataframe_split: an object with columns, {COLUMN!r} among them, and data is wanted")
    at = columns.index(COLUMN)
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(columns):
            raise RefusalError(400, f"row {number}: a list of {len(columns)} values is wanted, one for each column")
    return (row[at] for row in rows)


def _of_csv(text: str) -> Any:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if COLUMN not in header:
            raise RefusalError(400, f"text/csv: the first line names no column {COLUMN!r}")
        at = header.index(COLUMN)
        for number, row in enumerate(row for row in reader if row):  # an empty line is none; an empty text is ""
            if len(row) != len(header):
                raise RefusalError(400, f"row {number}: {len(row)} fields instead of {len(header)}")
            yield row[at]
    except csv.Error as error:
        raise RefusalError(400, f"text/csv, line {reader.line_num}: {error}") from None


READERS: dict[str, Callable[[str], Any]] = {"application/json": _of_json, "text/csv": _of_csv}

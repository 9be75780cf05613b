"""Rows of text and label, read from CSV, JSON Lines or Parquet and checked one by one.

Every error names the file, the row and the column, says what is wrong, and what would be right.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.contracts import FeatherweightError


@dataclass(frozen=True)
class Columns:
    """The wanted columns of one file, as they are written there.

    Attributes:
        origin: the file's name, or a hub dataset and its split: how errors call it.
        unit: what ``numbers`` count from 1: lines of a text file, or rows.
    """

    origin: str
    unit: str
    numbers: Sequence[int]
    values: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Table:
    """Checked rows: texts that are not empty, each with its label (``labels`` is empty for unlabeled text)."""

    origin: str
    unit: str
    numbers: Sequence[int]
    texts: list[str]
    labels: list[str]
    label_column: str

    def place(self, index: int) -> str:
        """Names a row for a person: its file and line."""
        return f"{self.origin}, {self.unit} {self.numbers[index]}"


def read(path: Path, *, text: str, label: str | None) -> Table:
    """Reads and checks one CSV, JSON Lines or Parquet file; ``label=None`` reads text only.

    Raises:
        FeatherweightError: the file or one of its rows is not as it should be.
    """
    if path.suffix not in READERS:
        raise FeatherweightError(f"{path}: {path.suffix or 'no'} suffix; data files end in {', '.join(READERS)}")
    if not path.is_file():
        raise FeatherweightError(f"{path}: there is no such file")
    columns = READERS[path.suffix](path, [text] if label is None else [text, label])
    return check(columns, text=text, label=label)


def check(columns: Columns, *, text: str, label: str | None) -> Table:
    """Makes a table of columns in which every text and every label is usable.

    Raises:
        FeatherweightError: there is no row, a text is empty or not text, or a label is missing or not a name.
    """
    if not columns.numbers:
        raise FeatherweightError(f"{columns.origin}: there are no rows; at least a few per label are needed")

    def each(name: str, clean: Callable[[Any], str]) -> list[str]:
        cleaned = []
        for number, value in zip(columns.numbers, columns.values[name], strict=True):
            try:
                cleaned.append(clean(value))
            except ValueError as error:
                place = f"{columns.origin}, {columns.unit} {number}, column {name!r}"
                raise FeatherweightError(f"{place}: {error}") from None
        return cleaned

    return Table(
        origin=columns.origin,
        unit=columns.unit,
        numbers=columns.numbers,
        texts=each(text, _text),
        labels=[] if label is None else each(label, _label),
        label_column=label or "",
    )


def require_columns(origin: str, present: Iterable[str], wanted: Sequence[str]) -> None:
    """Raises ``FeatherweightError`` if a wanted column is not there, with what is and the likeliest one."""
    present = list(present)
    for name in wanted:
        if name not in present:
            close = difflib.get_close_matches(name, present, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "name one of these in data.text or data.label"
            columns = ", ".join(repr(column) for column in present[:30]) or "none"
            raise FeatherweightError(f"{origin}: there is no column {name!r}; the columns are {columns}; {hint}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is not text; every row needs a text")
    if not value.strip():
        raise ValueError("the text is empty; remove the row or give it a text")
    return _encodable(value)


def _label(value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError("the label is missing; remove the row or give it a label")
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int):
        raise ValueError(f"{_shown(value)} is not a label; labels are text or integers")
    return _encodable(str(value).strip())


def _encodable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start + 1} is half a surrogate pair, which is not valid text") from None
    return value


def _shown(value: Any) -> str:
    return "null" if value is None else f"{str(value)[:40]!r} ({type(value).__name__})"


def _decoded(path: Path) -> str:
    """Returns a text file's content; a byte order mark is dropped."""
    content = path.read_bytes()
    try:
        decoded = content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FeatherweightError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} at offset {error.start} is not UTF-8; "
            "save the file as UTF-8"
        ) from None
    if not decoded.strip():
        raise FeatherweightError(f"{path}: the file is empty; at least a few rows per label are needed")
    return decoded


def _read_csv(path: Path, wanted: Sequence[str]) -> Columns:
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), strict=True)
    numbers: list[int] = []
    values: dict[str, list[str]] = {name: [] for name in wanted}
    line = 1
    try:
        header = next(reader)
        require_columns(f"{path}, line 1", header, wanted)
        twice = [name for name in wanted if header.count(name) > 1]
        if twice:
            raise FeatherweightError(f"{path}, line 1: column {twice[0]!r} is there twice; rename one of them")
        places = {name: header.index(name) for name in wanted}
        line = reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                raise FeatherweightError(
                    f"{path}, line {line}: {len(row)} fields where the header has {len(header)}; "
                    'put a text that holds commas, quotes or line breaks in "double quotes"'
                )
            if row:
                numbers.append(line)
                for name, place in places.items():
                    values[name].append(row[place])
            line = reader.line_num + 1
    except csv.Error as error:
        raise FeatherweightError(
            f'{path}, line {line}: {error}; a quoted text ends with " and doubles every " inside it'
        ) from None
    return Columns(str(path), "line", numbers, values)


def _read_jsonl(path: Path, wanted: Sequence[str]) -> Columns:
    numbers: list[int] = []
    values: dict[str, list[Any]] = {name: [] for name in wanted}
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise FeatherweightError(f"{path}, line {number}: not JSON ({error}); write one object per line") from None
        if not isinstance(record, dict):
            raise FeatherweightError(
                f"{path}, line {number}: {_shown(record)} is not an object; write one per line, such as "
                f"{json.dumps(dict.fromkeys(wanted, '…'), ensure_ascii=False)}"
            )
        require_columns(f"{path}, line {number}", record, wanted)
        numbers.append(number)
        for name in wanted:
            values[name].append(record[name])
    return Columns(str(path), "line", numbers, values)


def _read_parquet(path: Path, wanted: Sequence[str]) -> Columns:
    if path.stat().st_size == 0:
        raise FeatherweightError(f"{path}: the file is empty; at least a few rows per label are needed")
    try:
        with pq.ParquetFile(path) as file:
            require_columns(str(path), file.schema_arrow.names, wanted)
            table = file.read(columns=list(wanted))
    except (pa.ArrowException, OSError) as error:
        raise FeatherweightError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})") from None
    values = {name: _plain(path, name, table[name]) for name in wanted}
    return Columns(str(path), "row", range(1, table.num_rows + 1), values)


def _plain(path: Path, name: str, column: pa.ChunkedArray) -> list[Any]:
    """Turns a column into Python values; Parquet lets text columns hold bytes that are not UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        for number, value in enumerate(column, start=1):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise FeatherweightError(
                    f"{path}, row {number}, column {name!r}: byte at offset {error.start} of the text is not UTF-8; "
                    "write the text as UTF-8"
                ) from None
        raise


READERS: dict[str, Callable[[Path, Sequence[str]], Columns]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}

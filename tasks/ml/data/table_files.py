"""Rows of text and label, read from files as people have them: CSV and its relatives, JSON and Parquet.

What is meant is read where there is no doubt: the delimiter with which the wanted columns are there, the encoding that
a byte order mark names, one JSON object per line or all in a list. Every error names the file and the line.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.contracts.base import FeatherweightError
from tasks.ml.data.tables import SHOWN, Columns, Table, check, require_columns
from tasks.ml.quoting import quoted

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark its own begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
DELIMITERS = ",;\t|"
DIGITS = 1000
"""Digits from which on an integer stays text; Python converts no more than 4,300."""


def read(path: Path, *, text: str, label: str | None) -> Table:
    """Reads and checks one file; ``label=None`` reads text only.

    Raises:
        FeatherweightError: the file or one of its rows is not as it should be.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise FeatherweightError(f"{path}: {path.suffix or 'no'} suffix; data files end in {', '.join(READERS)}")
    if not path.is_file():
        raise FeatherweightError(f"{path}: there is no such file")
    try:
        columns = reader(path, [text] if label is None else [text, label])
    except OSError as error:
        raise FeatherweightError(f"{path}: cannot be read: {error.strerror}") from None
    return check(columns, text=text, label=label)


def _decoded(path: Path) -> str:
    """Returns a text file's content without a byte order mark; without one it must be UTF-8."""
    content = path.read_bytes()
    encoding = next((encoding for mark, encoding in MARKS if content.startswith(mark)), "utf-8")
    try:
        decoded = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding not in ("utf-8", "utf-8-sig"):
            raise FeatherweightError(
                f"{path}: begins with the byte order mark of {encoding.upper()}, and holds other bytes at offset "
                f"{error.start}; save the file as UTF-8"
            ) from None
        # Offsets do not count the mark, which holds no line break.
        line = content.count(b"\n", 0, error.start) + 1
        raise FeatherweightError(
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} at offset {error.start} is not UTF-8; save "
            f"the file as UTF-8; if it is Latin-1 or Windows-1252: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > NEW"
        ) from None
    if not decoded.strip():
        raise FeatherweightError(f"{path}: the file is empty; at least a few rows per label are needed")
    if "\0" in decoded.partition("\n")[0]:
        raise FeatherweightError(
            f"{path}, line 1: holds zero bytes, like UTF-16 without a byte order mark; save the file as UTF-8"
        )
    return decoded


# Delimited text ---------------------------------------------------------------------------------------------------


def _read_csv(path: Path, wanted: Sequence[str]) -> Columns:
    decoded = _decoded(path)
    delimiter = _delimiter(decoded, wanted, first="\t" if path.suffix.lower() == ".tsv" else ",")
    csv.field_size_limit(sys.maxsize)  # of the whole process: 131,072 characters otherwise
    reader = csv.reader(io.StringIO(decoded, newline=""), delimiter=delimiter, strict=True)
    numbers: list[int] = []
    values: dict[str, list[str]] = {name: [] for name in wanted}
    line = 1
    try:
        header = [name.strip() for name in next(reader)]
        like_a_row = any(cell.isdecimal() or len(cell.split()) > 4 for cell in header)
        require_columns(
            f"{path}, line 1",
            header,
            wanted,
            hint="; if line 1 is a row already, write a line with the columns' names above it" if like_a_row else "",
        )
        places = {name: header.index(name) for name in wanted}
        line = reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                raise FeatherweightError(
                    f"{path}, line {line}: {len(row)} fields where the header has {len(header)}; "
                    f'put a text that holds {delimiter!r}, quotes or line breaks in "double quotes"'
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


def _delimiter(decoded: str, wanted: Sequence[str], *, first: str) -> str:
    """The delimiter with which the header has the wanted columns, or else most columns; ``first`` among equals."""

    def found(delimiter: str) -> tuple[int, int]:
        try:
            header = [name.strip() for name in next(csv.reader(io.StringIO(decoded, newline=""), delimiter=delimiter))]
        except (csv.Error, StopIteration):
            return (0, 0)
        return (sum(name in header for name in wanted), len(header))

    return max((first, *DELIMITERS.replace(first, "")), key=found)


# JSON -------------------------------------------------------------------------------------------------------------


def _read_json(path: Path, wanted: Sequence[str]) -> Columns:
    decoded = _decoded(path)
    if decoded.lstrip().startswith("["):
        unit, records = "row", _list(path, decoded)
    else:
        unit, records = "line", _lines(path, decoded)
    for number, record in records:
        place = f"{path}, {unit} {number}"
        if not isinstance(record, dict):
            raise FeatherweightError(
                f"{place}: {quoted(str(record), SHOWN)} ({type(record).__name__}) is not an object; write one "
                f"per {unit}, such as {json.dumps(dict.fromkeys(wanted, '…'), ensure_ascii=False)}"
            )
        require_columns(place, record, wanted)
    return Columns(
        str(path),
        unit,
        [number for number, _ in records],
        {name: [record[name] for _, record in records] for name in wanted},
    )


def _list(path: Path, decoded: str) -> list[tuple[int, Any]]:
    """The numbered members of one JSON list."""
    try:
        return list(enumerate(_json(decoded), start=1))
    except json.JSONDecodeError as error:
        place, reason = f"{path}, line {error.lineno}", error.msg
    except RecursionError:
        place, reason = str(path), "nested too deeply"
    raise FeatherweightError(f"{place}: not JSON ({reason}); write one list of objects, or one object per line")


def _lines(path: Path, decoded: str) -> list[tuple[int, Any]]:
    """What each line that is not empty holds, with its number."""
    records = []
    for number, line in enumerate(decoded.split("\n"), start=1):
        if line.strip():
            try:
                records.append((number, _json(line)))
            except (json.JSONDecodeError, RecursionError) as error:
                raise FeatherweightError(
                    f"{path}, line {number}: not JSON ({error}); write one object per line, or one list of objects"
                ) from None
    return records


_json = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) < DIGITS else digits).decode
"""Made once: ``json.loads`` would make a decoder for every line."""


# Parquet ----------------------------------------------------------------------------------------------------------


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
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".parquet": _read_parquet,
}

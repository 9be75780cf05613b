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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.contracts.base import FeatherweightError
from tasks.ml.data.label_kinds import is_number
from tasks.ml.data.tables import SHOWN, Columns, Table, check, drawn, require_columns
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
    with _reader(path) as reader:
        columns = reader.read(path, [text] if label is None else [text, label])
    return check(columns, text=text, label=label)


def look(path: Path, *, most: int, wanted: Sequence[str] = ()) -> tuple[Columns, int]:
    """Reads every column that a recipe can name, of up to ``most`` rows, unchecked; and counts the rows.

    Args:
        wanted: columns that are known to be there, by which the delimiter and the header are told.

    Raises:
        FeatherweightError: the file is not as it should be.
    """
    with _reader(path) as reader:
        return reader.look(path, most, wanted)


@contextmanager
def _reader(path: Path) -> Iterator[Reader]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise FeatherweightError(f"{path}: {path.suffix or 'no'} suffix; data files end in {', '.join(READERS)}")
    if not path.is_file():
        raise FeatherweightError(f"{path}: there is no such file")
    try:
        yield reader
    except OSError as error:
        raise FeatherweightError(f"{path}: cannot be read: {error.strerror}") from None


def _single(names: Sequence[str]) -> list[str]:
    """Those names that are there once and are not empty: others cannot be told apart in a recipe."""
    return [name for name in names if name and names.count(name) == 1]


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
    rows = _csv_rows(path, wanted)
    _, header = next(rows)
    like_a_row = any(cell.isdecimal() or len(cell.split()) > 4 for cell in header)
    require_columns(
        f"{path}, line 1",
        header,
        wanted,
        hint="; if line 1 is a row already, write a line with the columns' names above it" if like_a_row else "",
    )
    numbers: list[int] = []
    values: dict[str, list[str]] = {name: [] for name in wanted}
    places = {name: header.index(name) for name in wanted}
    for line, row in rows:
        numbers.append(line)
        for name, place in places.items():
            values[name].append(row[place])
    return Columns(str(path), "line", numbers, values)


def _look_csv(path: Path, most: int, wanted: Sequence[str]) -> tuple[Columns, int]:
    rows = _csv_rows(path, wanted)
    _, header = next(rows)
    kept, total = drawn(rows, most)
    values = {name: [row[header.index(name)] for _, row in kept] for name in _single(header)}
    if not set(wanted) & set(header) and (cell := _like_a_value(values)):
        raise FeatherweightError(
            f"{path}, line 1: {quoted(cell, SHOWN)} looks like a value, not like the name of a column; write a line "
            "with the columns' names above it, or, if it is a name, say so with --text or --label"
        )
    return Columns(str(path), "line", [line for line, _ in kept], values), total


def _like_a_value(values: Mapping[str, Sequence[str]]) -> str:
    """A cell of the header that is a value of its own column, if all of them may be, or are sentences; else ""."""
    if list(values) == [str(place) for place in range(len(values))]:  # as pandas calls columns without names
        return ""
    alike = [name for name, cells in values.items() if name in cells or all(map(is_number, (name, *cells)))]
    others = [name for name in values if name not in alike]
    return alike[0] if alike and all(len(name.split()) >= 3 for name in others) else ""


def _csv_rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields the header, and then each row that is not empty, with its line."""
    decoded = _decoded(path)
    delimiter = _delimiter(decoded, wanted, first="\t" if path.suffix.lower() == ".tsv" else ",")
    csv.field_size_limit(sys.maxsize)  # of the whole process: 131,072 characters otherwise
    reader = csv.reader(io.StringIO(decoded, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        header = [name.strip() for name in next(reader)]
        yield 1, header
        line = reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                raise FeatherweightError(
                    f"{path}, line {line}: {len(row)} fields where the header has {len(header)}; "
                    f'put a text that holds {delimiter!r}, quotes or line breaks in "double quotes"'
                )
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise FeatherweightError(
            f'{path}, line {line}: {error}; a quoted text ends with " and doubles every " inside it'
        ) from None


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
    unit, records, _ = _records(path, wanted)
    for number, record in records:
        require_columns(f"{path}, {unit} {number}", record, wanted)
    return _columns(path, unit, records, wanted)


def _look_json(path: Path, most: int, wanted: Sequence[str]) -> tuple[Columns, int]:
    unit, records, total = _records(path, wanted or ("text", "label"), most)
    names = dict.fromkeys(name for _, record in records for name in record)
    return _columns(path, unit, records, _single(list(names))), total


def _columns(path: Path, unit: str, records: Sequence[tuple[int, dict[str, Any]]], names: Sequence[str]) -> Columns:
    values = {name: [record.get(name) for _, record in records] for name in names}
    return Columns(str(path), unit, [number for number, _ in records], values)


def _records(
    path: Path, wanted: Sequence[str], most: int | None = None
) -> tuple[str, list[tuple[int, dict[str, Any]]], int]:
    """What numbers count, numbered objects, up to ``most`` if that is given, and how many there are."""
    decoded = _decoded(path)
    if decoded.lstrip().startswith("["):
        unit = "row"
        records, total = drawn(_list(path, decoded), most)
    else:
        unit = "line"
        lines = ((number, line) for number, line in enumerate(decoded.split("\n"), start=1) if line.strip())
        kept, total = drawn(lines, most)
        records = _lines(path, kept)
    for number, record in records:
        if not isinstance(record, dict):
            raise FeatherweightError(
                f"{path}, {unit} {number}: {quoted(str(record), SHOWN)} ({type(record).__name__}) is not an object; "
                f"write one per {unit}, such as {json.dumps(dict.fromkeys(wanted, '…'), ensure_ascii=False)}"
            )
    return unit, records, total


def _list(path: Path, decoded: str) -> list[tuple[int, Any]]:
    """The numbered members of one JSON list."""
    try:
        return list(enumerate(_json(decoded), start=1))
    except json.JSONDecodeError as error:
        place, reason = f"{path}, line {error.lineno}", error.msg
    except RecursionError:
        place, reason = str(path), "nested too deeply"
    raise FeatherweightError(f"{place}: not JSON ({reason}); write one list of objects, or one object per line")


def _lines(path: Path, lines: Iterable[tuple[int, str]]) -> list[tuple[int, Any]]:
    """What each numbered line holds, with its number."""
    records = []
    for number, line in lines:
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
    with _parquet(path) as file:
        require_columns(str(path), file.schema_arrow.names, wanted)
        table = file.read(columns=list(wanted))
    return _plain(path, table, range(1, table.num_rows + 1))


def _look_parquet(path: Path, most: int, wanted: Sequence[str]) -> tuple[Columns, int]:
    with _parquet(path) as file:
        kept, total = drawn(range(file.metadata.num_rows), most)
        places = np.array(kept, dtype=np.int64)
        parts, start = [], 0
        for batch in file.iter_batches(columns=_single(file.schema_arrow.names)):
            inside = places[(places >= start) & (places < start + batch.num_rows)]
            parts.append(pa.Table.from_batches([batch]).take(inside - start))
            start += batch.num_rows
    if not parts:
        raise FeatherweightError(f"{path}: there are no rows; at least a few per label are needed")
    return _plain(path, pa.concat_tables(parts), [place + 1 for place in kept]), total


@contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    if path.stat().st_size == 0:
        raise FeatherweightError(f"{path}: the file is empty; at least a few rows per label are needed")
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise FeatherweightError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})") from None


def _plain(path: Path, table: pa.Table, numbers: Sequence[int]) -> Columns:
    """Turns columns into Python values; Parquet lets text columns hold bytes that are not UTF-8."""
    values: dict[str, list[Any]] = {}
    for name in table.column_names:
        try:
            values[name] = table[name].to_pylist()
        except UnicodeDecodeError:
            for number, value in zip(numbers, table[name], strict=True):
                try:
                    value.as_py()
                except UnicodeDecodeError as error:
                    raise FeatherweightError(
                        f"{path}, row {number}, column {name!r}: byte at offset {error.start} of the text is not "
                        "UTF-8; write the text as UTF-8"
                    ) from None
            raise
    return Columns(str(path), "row", numbers, values)


class Reader(NamedTuple):
    """How files of a kind are read: the wanted columns of all rows, or all columns of some."""

    read: Callable[[Path, Sequence[str]], Columns]
    look: Callable[[Path, int, Sequence[str]], tuple[Columns, int]]


_CSV, _JSON = Reader(_read_csv, _look_csv), Reader(_read_json, _look_json)
READERS = {
    ".csv": _CSV,
    ".tsv": _CSV,
    ".json": _JSON,
    ".jsonl": _JSON,
    ".ndjson": _JSON,
    ".parquet": Reader(_read_parquet, _look_parquet),
}

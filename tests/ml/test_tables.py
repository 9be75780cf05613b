"""Each kind of bad row or file gives one message that names the file, the row, the column and the cure."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.contracts import FeatherweightError
from tasks.ml import tables


def read(path: Path) -> tables.Table:
    return tables.read(path, text="text", label="label")


def test_csv_keeps_quotes_commas_and_line_breaks_and_counts_lines_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufefftext,id,label\r\n"one, ""two""\nthree",1,a\r\n\r\nnaïve,2,b\r\n'.encode())
    table = read(path)
    assert table.texts == ['one, "two"\nthree', "naïve"]
    assert table.labels == ["a", "b"]
    assert table.place(1) == f"{path}, line 5"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_integer_and_boolean_labels_become_their_names(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    for labels, names in (([0, 12], ["0", "12"]), ([True, False], ["true", "false"]), ([" x", "y"], ["x", "y"])):
        write(path, [{"text": "same", "label": label} for label in labels])
        assert read(path).labels == names


def test_text_only_needs_no_label_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\nhello\n")
    assert tables.read(path, text="text", label=None).labels == []


def write(path: Path, rows: list[dict[str, object]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"", "rows.csv: the file is empty"),
        ("rows.csv", b" \n\n", "rows.csv: the file is empty"),
        ("rows.csv", b"text,label\n", "rows.csv: there are no rows"),
        (
            "rows.csv",
            b"txt,label\na,b\n",
            "line 1: there is no column 'text'; the columns are 'txt', 'label'; did you mean",
        ),
        ("rows.csv", b"text,label,text\na,b,c\n", "line 1: column 'text' is there twice"),
        ("rows.csv", b"text,label\na,b\nc,d,e\n", "line 3: 3 fields where the header has 2"),
        ("rows.csv", b"text,label\na,b\nc\n", "line 3: 1 fields where the header has 2"),
        ("rows.csv", b'text,label\na,b\n"c,d\n', "line 3: unexpected end of data; a quoted text ends with"),
        ("rows.csv", b'text,label\n"a"b,c\n', "line 2: "),
        (
            "rows.csv",
            b"text,label\na,b\n\xe9t\xe9,b\n",
            "line 3: byte 0xe9 at offset 15 is not UTF-8; save the file as UTF-8",
        ),
        ("rows.csv", b"\xff\xfet\x00", "line 1: byte 0xff at offset 0 is not UTF-8"),
        ("rows.csv", b"text,label\n  ,b\n", "line 2, column 'text': the text is empty"),
        ("rows.csv", b"text,label\na,b\nc, \n", "line 3, column 'label': the label is missing"),
        ("rows.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', "line 2: not JSON"),
        ("rows.jsonl", b'{"text": "a", "label": 1}\n["a", 1]\n', "line 2: \"['a', 1]\" (list) is not an object"),
        ("rows.jsonl", b'{"text": "a", "label": 1}\n{"text": "a"}\n', "line 2: there is no column 'label'"),
        ("rows.jsonl", b'{"text": 7, "label": 1}\n', "line 1, column 'text': '7' (int) is not text"),
        ("rows.jsonl", b'{"text": null, "label": 1}\n', "line 1, column 'text': null is not text"),
        ("rows.jsonl", b'{"text": "a", "label": null}\n', "line 1, column 'label': the label is missing"),
        ("rows.jsonl", b'{"text": "a", "label": 0.5}\n', "line 1, column 'label': '0.5' (float) is not a label"),
        (
            "rows.jsonl",
            b'{"text": "a\\ud800", "label": 1}\n',
            "line 1, column 'text': character 2 is half a surrogate pair",
        ),
        ("rows.parquet", b"", "rows.parquet: the file is empty"),
        ("rows.parquet", b"PAR1 nonsense PAR1", "rows.parquet: not a whole Parquet file"),
        ("rows.txt", b"a\n", "rows.txt: .txt suffix; data files end in .csv, .jsonl, .parquet"),
    ],
)
def test_bad_files_are_refused_by_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FeatherweightError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FeatherweightError, match=r"gone\.csv: there is no such file"):
        read(tmp_path / "gone.csv")


def test_parquet_rows_and_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write(path, [{"text": "a", "label": "x"}, {"text": "", "label": "y"}])
    with pytest.raises(FeatherweightError, match="row 2, column 'text': the text is empty"):
        read(path)
    write(path, [{"text": 1.5, "label": "x"}])
    with pytest.raises(FeatherweightError, match=r"row 1, column 'text': '1.5' \(float\) is not text"):
        read(path)
    write(path, [{"review": "a", "label": "x"}])
    with pytest.raises(FeatherweightError, match="there is no column 'text'; the columns are 'review', 'label'"):
        read(path)


def test_parquet_text_that_is_not_utf8_is_refused_by_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    latin = pa.array([b"plain", b"\xe9t\xe9"]).view(pa.string())
    pq.write_table(pa.table({"text": latin, "label": ["x", "y"]}), path)
    with pytest.raises(FeatherweightError, match="row 2, column 'text': byte at offset 0 of the text is not UTF-8"):
        read(path)

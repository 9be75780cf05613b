"""Each kind of bad row or file gives one message that names the file, the row, the column and the cure."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.contracts.base import FeatherweightError
from tasks.ml.data import table_files, tables


def read(path: Path) -> tables.Table:
    return table_files.read(path, text="text", label="label")


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
    assert table_files.read(path, text="text", label=None).labels == []


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
        ("rows.csv", b"1,it was a very long day\n0,b\n", "; if line 1 is a row already, write a line with"),
        (
            "rows.csv",
            b"1,it was a very long day that went on and on and on\n0,b\n",
            "the columns are '1', 'it was a very long day that went on and…'; name one of these in",
        ),
        (
            "rows.csv",
            b"id;txt;label\n1;a;b\n",
            "the columns are 'id', 'txt', 'label'; did you mean 'txt'? Set data.text",
        ),
        ("rows.tsv", b"text\tlabel\na\tb\tc\n", "line 2: 3 fields where the header has 2; put a text that holds '\\t'"),
        ("rows.csv", b"text,label\na,b\nc,d,e\n", "line 3: 3 fields where the header has 2"),
        ("rows.csv", b"text,label\na,b\nc\n", "line 3: 1 fields where the header has 2"),
        ("rows.csv", b'text,label\na,b\n"c,d\n', "line 3: unexpected end of data; a quoted text ends with"),
        ("rows.csv", b'text,label\n"a"b,c\n', "line 2: "),
        (
            "rows.csv",
            b"text,label\na,b\n\xe9t\xe9,b\n",
            "line 3: byte 0xe9 at offset 15 is not UTF-8; save the file as UTF-8; if it is Latin-1 or Windows",
        ),
        ("rows.csv", b"\xff\xfet\x00e", "begins with the byte order mark of UTF-16, and holds other bytes at offset"),
        ("rows.csv", "text,label\na,b\n".encode("utf-16-le"), "line 1: holds zero bytes, like UTF-16 without a byte"),
        ("rows.csv", b"text,label\n  ,b\n", "line 2, column 'text': the text is empty"),
        ("rows.csv", b"text,label\na,b\nc, \n", "line 3, column 'label': the label is missing"),
        (
            "rows.csv",
            b"text,label\na,b\nc, \nd,\ne,b\n",
            "remove the row or give it a label (2 of 4 rows are like that)",
        ),
        ("rows.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', "line 2: not JSON"),
        ("rows.jsonl", b'{"text": "a", "label": 1}\n["a", 1]\n', "line 2: \"['a', 1]\" (list) is not an object"),
        ("rows.jsonl", b'{"text": "a", "label": 1}\n{"text": "a"}\n', "line 2: there is no column 'label'"),
        ("rows.jsonl", b'{"text": 7, "label": 1}\n', "line 1, column 'text': '7' (int) is not text"),
        ("rows.jsonl", b'{"text": null, "label": 1}\n', "line 1, column 'text': null is not text"),
        ("rows.jsonl", b'{"text": "a", "label": null}\n', "line 1, column 'label': the label is missing"),
        ("rows.jsonl", b'{"text": "a", "label": NaN}\n', "line 1, column 'label': the label is missing"),
        ("rows.jsonl", b'{"text": "a", "label": 1e999}\n', "line 1, column 'label': 'inf' (float) is not a label"),
        ("rows.jsonl", b'{"text": "a", "label": {}}\n', "line 1, column 'label': '{}' (dict) is not a label"),
        (
            "rows.jsonl",
            b'{"text": "a", "label": ["b", "c"]}\n',
            "\"['b', 'c']\" (list) looks like several labels; name a",
        ),
        ("rows.jsonl", b'{"text": "a", "label": %s}\n' % (b"7" * 4300), "is not a label: it has 4300 characters"),
        ("rows.jsonl", b'{"text": "a", "label": %s}\n' % (b"7" * 4301), "is not a label: it has 4301 characters"),
        ("rows.json", b'[{"text": "a", "label": %s}]' % (b"7" * 5000), "row 1, column 'label': '7777"),
        ("rows.json", b'[{"text": "a", "label": 1}, 7]', "row 2: '7' (int) is not an object; write one per row"),
        ("rows.json", b'[{"text": "a",\n "label": }]', "line 2: not JSON (Expecting value)"),
        ("rows.json", b'{"rows": [\n{"text": "a", "label": 1}]}', "line 1: not JSON"),
        ("rows.json", b"[" * 100_000, "rows.json: not JSON (nested too deeply)"),
        (
            "rows.jsonl",
            b'{"text": "a\\ud800", "label": 1}\n',
            "line 1, column 'text': character 2 is half a surrogate pair",
        ),
        ("rows.parquet", b"", "rows.parquet: the file is empty"),
        ("rows.parquet", b"PAR1 nonsense PAR1", "rows.parquet: not a whole Parquet file"),
        ("rows.txt", b"a\n", "rows.txt: .txt suffix; data files end in .csv, .tsv, .json, .jsonl, .ndjson, .parquet"),
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


COMMA = "id,text,label\n1,so|so;,a\n2,naïve,b\n"
OBJECTS: list[dict[str, object]] = [{"text": "so|so;", "label": "a"}, {"text": "naïve", "label": "b"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", COMMA.encode("utf-16")),
        ("rows.csv", codecs.BOM_UTF16_BE + COMMA.encode("utf-16-be")),
        ("rows.csv", COMMA.encode("utf-32")),
        ("rows.CSV", b"text,label \nso|so;,a\n" + "naïve,b\n".encode()),
        ("rows.csv", 'text;label\n"so|so;";a\nnaïve;b\n'.encode()),
        ("rows.csv", "text\tlabel\nso|so;\ta\nnaïve\tb\n".encode()),
        ("rows.csv", 'n|text|label\n1|"so|so;"|a\n2|naïve|b\n'.encode()),
        ("rows.tsv", "text\tlabel\nso|so;\ta\nnaïve\tb\n".encode()),
        ("rows.Tsv", COMMA.encode()),
        ("rows.json", json.dumps(OBJECTS).encode()),
        ("rows.jsonl", json.dumps(OBJECTS, indent=1).encode("utf-16")),
        ("rows.json", "\n".join(map(json.dumps, OBJECTS)).encode()),
        ("rows.ndjson", b"\n\n" + "\n".join(map(json.dumps, OBJECTS)).encode()),
        (
            "rows.jsonl",
            "\n".join(json.dumps({**row, "id": "9"}) for row in OBJECTS).replace('"9"', "8" * 5000).encode(),
        ),
    ],
)
def test_what_is_meant_is_read_where_there_is_no_doubt(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    table = read(path)
    assert (table.texts, table.labels) == (["so|so;", "naïve"], ["a", "b"])


def test_a_long_text_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"text,label\n{'very ' * 40_000}long,a\nshort,b\n")
    assert len(read(path).texts[0]) == 200_004


def test_a_parquet_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "label", "text"]), path)
    with pytest.raises(FeatherweightError, match=r"rows\.parquet: column 'text' is there twice; rename one"):
        read(path)


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


# A look


def looked(path: Path, *, most: int = 100, **known: Any) -> tuple[dict[str, list[Any]], list[int], int]:
    seen, total = table_files.look(path, most=most, **known)
    return {name: list(values) for name, values in seen.values.items()}, list(seen.numbers), total


def test_a_look_has_every_column_that_a_recipe_can_name(tmp_path: Path) -> None:
    semicolons = tmp_path / "rows.csv"
    semicolons.write_text(";text;label;twice;twice\n0;one;a;x;y\n\n1;two, three;b;x;y\n", encoding="utf-8-sig")
    assert looked(semicolons) == ({"text": ["one", "two, three"], "label": ["a", "b"]}, [2, 4], 2)
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"text": "one", "tags": [1]}\n\n{"text": "two", "label": 2}\n', encoding="utf-8")
    values = {"text": ["one", "two"], "tags": [[1], None], "label": [None, 2]}
    assert looked(lines) == (values, [1, 3], 2)
    whole = tmp_path / "rows.json"
    whole.write_text('[{"text": "one"}, {"text": "two"}]', encoding="utf-8")
    assert looked(whole) == ({"text": ["one", "two"]}, [1, 2], 2)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
def test_a_look_at_a_large_file_has_some_rows_the_same_each_time(suffix: str, tmp_path: Path) -> None:
    path, count = tmp_path / f"rows.{suffix}", 300
    rows = [{"text": f"text {index}", "label": index % 2} for index in range(count)]
    if suffix == "csv":
        path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows), encoding="utf-8")
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=70)
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if suffix == "jsonl" else f"[{','.join(lines)}]", encoding="utf-8")
    values, numbers, total = looked(path, most=60)
    assert (len(numbers), total) == (60, count)
    assert numbers == sorted(set(numbers))
    first = 2 if suffix == "csv" else 1
    assert values["text"] == [f"text {number - first}" for number in numbers]
    assert 15 < sum(map(int, values["label"])) < 45, "labels that take turns"
    assert looked(path, most=60) == (values, numbers, total)


@pytest.mark.parametrize(
    ("content", "cell"),
    [
        ("good,superb film of the year\nbad,dull film of the year\ngood,a lovely film\n", "'good'"),
        ("0,superb film of the year\n1,dull film\n1,a lovely film\n", "'0'"),
        ("text,spam\nbuy this,spam\nhello you,ham\n", ""),
        ("0,1\nfine film,1\ndull film,0\n", ""),
        ("What do you think of it?,mark\nfine film,1\n", ""),
    ],
)
def test_a_header_that_is_a_row_already_is_refused(content: str, cell: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content, encoding="utf-8")
    header = content.partition("\n")[0].split(",")
    if cell:
        with pytest.raises(FeatherweightError, match=f"line 1: {cell} looks like a value, not like the name of a col"):
            looked(path)
    else:
        assert list(looked(path)[0]) == header
    assert list(looked(path, wanted=header[:1])[0]) == header


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet", "rows.xlsx", "none.csv"])
def test_a_look_refuses_what_reading_refuses(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name != "none.csv":
        path.write_bytes(b"")
    with pytest.raises(FeatherweightError) as read:
        table_files.read(path, text="text", label="label")
    with pytest.raises(FeatherweightError) as seen:
        table_files.look(path, most=9)
    assert str(seen.value) == str(read.value)

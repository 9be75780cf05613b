"""What is read of a request, and what is refused, with which status and sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.serving import bodies

JSON = "application/json"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ({"dataframe_records": [{"text": "a"}, {"text": "b", "more": 1}]}, JSON),
        ({"dataframe_split": {"columns": ["n", "text"], "data": [[1, "a"], [2, "b"]]}}, f"{JSON}; charset=UTF-8"),
        ({"instances": [{"text": "a"}, {"text": "b"}]}, JSON),
        ({"inputs": {"text": ["a", "b"]}}, JSON),
        ({"inputs": ["a", "b"], "params": None}, JSON),
        ('text,n\na,1\n"b",2\n', "text/csv"),
        ("text\na\n\nb\n\n", "text/csv"),
    ],
)
def test_shapes_of_requests(body: Any, content_type: str) -> None:
    raw = body if isinstance(body, str) else json.dumps(body)
    assert bodies.texts(raw.encode(), content_type) == ["a", "b"]


def records(*texts: Any) -> bytes:
    return json.dumps({"dataframe_records": [{"text": text} for text in texts]}).encode()


@pytest.mark.parametrize(
    ("body", "content_type", "status", "message"),
    [
        (records("a"), "", 415, "Content-Type: there is none"),
        (records("a"), "text/html", 415, "Content-Type: 'text/html' is not read"),
        (records("a"), f"{JSON}; charset=latin-1", 415, "the only charset is utf-8"),
        (records("a", None), JSON, 400, "row 1: text must be a string, not null"),
        (records("a", 3), JSON, 400, "row 1: text must be a string, not a number"),
        (records("\ud800"), JSON, 400, "row 0: half of a surrogate pair"),
        (records(*"a" * (bodies.MAX_ROWS + 1)), JSON, 413, "more than 4096 rows"),
        (records("a", "b" * (bodies.MAX_CHARACTERS + 1)), JSON, 413, "row 1: 100001 characters"),
        (b"\xff", JSON, 400, "byte 0 is not UTF-8"),
        (b"{", JSON, 400, "no JSON: "),
        (b"[" * 100_000, JSON, 400, "nested too deeply"),
        (b'{"inputs": ' + b"9" * 5000 + b"}", JSON, 400, "too many digits"),
        (b"[]", JSON, 400, "an object with one of"),
        (b"{}", JSON, 400, "an object with one of"),
        (b'{"inputs": [], "instances": []}', JSON, 400, "an object with one of"),
        (b'{"inputs": 3}', JSON, 400, "a list is wanted, not a number"),
        (b'{"inputs": {"text": 3}}', JSON, 400, "a list of texts is wanted"),
        (b'{"inputs": {"text": {"0": "a"}}}', JSON, 400, "a list of texts is wanted"),
        (b'{"inputs": {"words": []}}', JSON, 400, "there is no 'text'"),
        (b'{"dataframe_records": [{"text": "a"}, {}]}', JSON, 400, "row 1: there is no 'text'"),
        (b'{"dataframe_split": {"columns": ["text"], "data": [["a"], []]}}', JSON, 400, "row 1: a list of 1 values"),
        (b"words\na\n", "text/csv", 400, "names no column 'text'"),
        (b"text\na,b\n", "text/csv", 400, "row 0: 2 fields instead of 1"),
        (b'text\n"a', "text/csv", 400, "text/csv, line 2"),
    ],
)
def test_what_is_refused(body: bytes, content_type: str, status: int, message: str) -> None:
    with pytest.raises(bodies.RefusalError, match=r".") as refused:
        bodies.texts(body, content_type)
    assert refused.value.status == status
    assert message in str(refused.value)
    assert len(str(refused.value)) < 300


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    body=st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from([*bodies.KINDS, "text", "columns", "data"]), inner, max_size=3)
            ),
            max_leaves=6,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    content_type=st.sampled_from([JSON, "text/csv", "", "; ;", "application/json;charset"]),
)
def test_anything_is_read_or_refused(body: bytes, content_type: str) -> None:
    try:
        found = bodies.texts(body, content_type)
    except bodies.RefusalError:
        return
    assert all(isinstance(text, str) for text in found)

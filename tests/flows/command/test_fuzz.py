"""Whatever a person writes for a recipe or an argument is taken, or refused in lines that a person can read."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flows.command import cli, recipe_files
from tasks.contracts.base import FeatherweightError

LONGEST_LINE = 600

PATHS = ["name", "problem", "seed", "data", "data.source", "data.text", "training.epochs", "compute.precision",
         "pruning.sparsity", "budget.min_shrink", "deployment.alias", "quantization", "no.such", "Ä.²", ""]  # fmt: skip
SCALARS = st.sampled_from(
    ["2024-13-45", "2024-01-01", "0x_", "0o9", "!!int abc", "!!float x", "!!binary '*'",
     "!!timestamp no", ".inf", "-.nan",
     "1e999", "9" * 5000, "~", "''", "[", "{", "}", "? [1]", "? {a: 1}\n: 2", "<<: {a: 1}",
     "&a [*a]", "*nothing", "@", "%",
     "!!python/object:os.system x", "!x y", "\t", "\x07", "a: b: c", "- 1", "'", '"\\x', "yes",
     "1_0", "12:30:45", "=", "|", ">",
     "[[[[[[[[[[1]]]]]]]]]]", "{a: {a: {a: {a: 1}}}}", "x" * 3000, "{? [1] : 2}", "{1: 2}", "{null: 1}", "[" * 3000]
)  # fmt: skip
VALUES = st.one_of(SCALARS, st.text(max_size=30), st.floats().map(str), st.integers().map(str))
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A billion laughs: a few hundred bytes that stand for gigabytes."""

FUZZ = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def judge(name: str, changes: list[str]) -> None:
    try:
        recipe_files.load(name, changes)
    except FeatherweightError as error:
        lines = str(error).splitlines()
        assert lines
        assert max(map(len, lines)) <= LONGEST_LINE


@FUZZ
@given(path=st.sampled_from(PATHS), value=VALUES)
def test_any_change_is_taken_or_refused(path: str, value: str) -> None:
    judge("smoke", [f"{path}={value}"])


@FUZZ
@given(entries=st.lists(st.tuples(st.sampled_from(PATHS), VALUES), max_size=4), raw=st.one_of(st.just(""), VALUES))
@example(entries=[], raw=LAUGHS)
@example(entries=[], raw="name: &a [*a]")
@example(entries=[], raw="<<: {name: x}")
@example(entries=[], raw="data: {source: &s {<<: *s}}")
def test_any_file_is_taken_or_refused(tmp_path: Path, entries: list[tuple[str, str]], raw: str) -> None:
    file = tmp_path / "mine.yaml"
    text = "\n".join([f"{path}: {value}" for path, value in entries] + [raw])
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    judge(str(file), [])


@FUZZ
@given(name=st.one_of(st.text(max_size=40), st.sampled_from(["~nosuch/x", "x" * 300, "a\0b", "", ".", "..", "/", "~"])))
def test_any_name_is_found_or_refused(name: str) -> None:
    judge(name, [])


OPTIONS = [
    ["runs", "--limit"], ["serve", "x", "--port"], ["up", "--prefect-port"], ["up", "--limit"],
    ["promote", "x", "--version"],
    ["study", "--target-accuracy"], ["study", "--seeds"], ["ablate", "smoke", "--seeds"],
    ["search", "smoke", "--trials"],
    ["search", "smoke", "--minutes"], ["search", "smoke", "--target-ms"], ["search", "smoke",
    "--seed"], ["xray", "x", "--seconds"],
    ["search", "smoke", "--minimize"], ["deploy", "x", "--to"], ["--no-such"], [],
]  # fmt: skip
NUMBERS = st.one_of(
    st.sampled_from(["-1", "0", "70000", "1" * 5000, "nan", "inf", "1e400", "", "²", "1.5", "0x1", " 7 "]),
    st.text(max_size=9),
)


@FUZZ
@given(option=st.sampled_from(OPTIONS), value=NUMBERS)
def test_any_argument_is_read_or_refused_in_one_line(option: list[str], value: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.read([*option, value])
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
    assert status in (0, cli.BAD_INPUT)
    assert said.getvalue().count("\n") == (status == cli.BAD_INPUT)
    assert len(said.getvalue()) <= LONGEST_LINE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 2024-13-45", "line 1, column 7: '2024-13-45' is no timestamp"),
        ("seed: !!timestamp no", "line 1, column 7: 'no' is no timestamp"),
        ("seed: 0x_", "line 1, column 7: '0x_' is no int"),
        ("seed: !!int abc", "line 1, column 7: 'abc' is no int"),
        ("? [1]\n: 2", "line 1, column 3: [1] is no name of a field"),
        ("seed: 1\ndata: {<<: {text: x}}", "line 2, column 8: keys are not merged with <<"),
    ],
)
def test_what_is_no_value_is_said_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(FeatherweightError) as error:
        recipe_files.load(str(file))
    assert f"recipe mine.yaml: {expected}" in str(error.value)

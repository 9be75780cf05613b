"""A recipe for files as people have them: it is taken by ``prepare``, or one sentence says what is missing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flows import preflight
from flows.command import cli, console, init, recipe_files
from flows.recipe import Recipe
from tasks.contracts.base import FeatherweightError
from tasks.engine import tracking
from tasks.ml.data import proposals
from tasks.prepare import DataConfig, prepare
from tests.flows import tiny_recipes

PLAIN = (
    "the",
    "a",
    "film",
    "was",
    "story",
    "plot",
    "actor",
    "scene",
    "music",
    "with",
    "rather",
    "very",
    "quite",
    "this",
)
TELLING = {"good": ("superb", "lovely", "bright"), "bad": ("dull", "awful", "clumsy")}


def sentences(count: int, *, words: int = 9, classes: Sequence[str] = ("good", "bad")) -> list[tuple[str, str]]:
    """Texts, no two alike, and the class that one word tells."""
    chance = random.Random(0)
    rows = []
    for index in range(count):
        label = classes[index % len(classes)]
        text = [chance.choice(PLAIN) for _ in range(words)] + [f"take{index}", chance.choice(TELLING[label])]
        rows.append((" ".join(text), label))
    return rows


def write(path: Path, header: str, rows: Sequence[Sequence[Any]], *, by: str = ",", encoding: str = "utf-8") -> Path:
    lines = [by.join(map(str, row)) for row in rows]
    path.write_text("\n".join([header, *lines]) + "\n", encoding=encoding)
    return path


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def semicolons(folder: Path) -> Path:
    return write(folder / "a.csv", "id;review;sentiment", [(i, *row) for i, row in enumerate(sentences(200))], by=";")


def byte_order_mark(folder: Path) -> Path:
    return write(folder / "a.csv", "review,sentiment", sentences(200), encoding="utf-8-sig")


def parquet(folder: Path) -> Path:
    rows = sentences(200)
    table = pa.table({"review": [text for text, _ in rows], "stars": pa.array([i % 3 for i in range(200)], pa.int8())})
    pq.write_table(table, folder / "a.parquet")
    return folder / "a.parquet"


def json_lines(folder: Path) -> Path:
    rows = [{"uid": f"x-{i}", "review": text, "label": label} for i, (text, label) in enumerate(sentences(200))]
    return write_jsonl(folder / "a.jsonl", rows)


def one_class(folder: Path) -> Path:
    return write(folder / "a.csv", "review,sentiment", sentences(200, classes=["good"]))


def long_texts(folder: Path) -> Path:
    return write(folder / "a.csv", "review,sentiment", sentences(100, words=700))


def numeric_labels(folder: Path) -> Path:
    return write(folder / "a.csv", "review,score", [(text, i % 7 / 2) for i, (text, _) in enumerate(sentences(200))])


def two_text_columns(folder: Path) -> Path:
    rows = [(" ".join(text.split()[:4]), text, label) for text, label in sentences(200)]
    return write(folder / "a.csv", "title,body,label", rows)


def tokens_and_tags(folder: Path) -> Path:
    texts = [text.split() for text, _ in sentences(50)]
    rows = [{"tokens": tokens, "ner_tags": [index % 3 for index in range(len(tokens))]} for tokens in texts]
    return write_jsonl(folder / "a.jsonl", rows)


def no_label(folder: Path) -> Path:
    return write(folder / "a.csv", "id,review", [(i, text) for i, (text, _) in enumerate(sentences(200))])


def begin(data: Path | str, **said: Any) -> init.Beginning:
    defaults = dict.fromkeys(("text", "label", "problem", "base_model", "output"), "")
    return init.begin(str(data), **{**defaults, "force": False, **said})


def load(path: Path) -> Recipe:
    recipe = recipe_files.load(str(path))
    preflight.require(preflight.objections(recipe, preflight.inspected(recipe.base_model)))
    return recipe


def prepared(recipe: Recipe) -> int:
    with tracking.pipeline_run("init", {}, run_name="init") as run_id:
        result = prepare(recipe.data, problem=recipe.problem, base_model=recipe.base_model, run_id=run_id)
    assert result.scorecard.num_rows
    return result.scorecard.num_rows


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "text", "label", "problem", "rows"),
    [
        (semicolons, "review", "sentiment", "text-classification", 200),
        (byte_order_mark, "review", "sentiment", "text-classification", 200),
        (parquet, "review", "stars", "text-classification", 200),
        (json_lines, "review", "label", "text-classification", 200),
        (long_texts, "review", "sentiment", "text-classification", 100),
        (numeric_labels, "review", "score", "text-regression", 200),
        (two_text_columns, "body", "label", "text-classification", 200),
    ],
)
def test_a_recipe_is_written_that_prepare_takes(
    make: Callable[[Path], Path], text: str, label: str, problem: str, rows: int, folder: Path
) -> None:
    found = begin(make(folder))
    assert found.path == folder / "a.yaml"
    lines = found.recipe.splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 120
    recipe = load(found.path)
    assert (recipe.name, recipe.data.text, recipe.data.label, recipe.problem) == ("a", text, label, problem)
    assert prepared(recipe) == rows


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (one_class, "a.csv, column 'sentiment': every row has the label 'good'; at least two labels are needed"),
        (tokens_and_tags, "a.jsonl: 'tokens' and 'ner_tags' hold lists of the same lengths, like tokens with a tag"),
        (no_label, "a.csv: 'review' is text, and no other column could be its label ('id': a whole number of its own"),
    ],
)
def test_what_cannot_be_learned_is_one_sentence_and_status_2(
    make: Callable[[Path], Path],
    sentence: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(folder)
    monkeypatch.setattr(console, "is_answered", False)
    assert cli.main(["init", next(folder.iterdir()).name, "--json"]) == 2
    said = capsys.readouterr()
    [line] = said.err.splitlines()
    assert line.startswith(f"featherweight: {sentence}")
    assert json.loads(said.out) == {"error": line.removeprefix("featherweight: "), "exit_status": 2}
    assert not list(folder.glob("*.yaml"))


def test_one_class_is_refused_as_prepare_refuses_it(folder: Path) -> None:
    path = one_class(folder)
    with pytest.raises(FeatherweightError) as early:
        begin(path)
    config = DataConfig(source=f"file:{path}", text="review", label="sentiment")
    with pytest.raises(FeatherweightError) as late:
        prepared(Recipe(data=config))
    assert str(early.value) == str(late.value)


def test_what_is_assumed_is_what_a_recipe_has_by_default() -> None:
    recipe = Recipe()
    assert recipe.base_model == init.BASE_MODEL
    assert {name: getattr(recipe.data, f"{name}_fraction") for name in proposals.FRACTIONS} == proposals.FRACTIONS


def test_it_says_what_was_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = sentences(2000)
    write(folder / "my reviews.csv", "review,sentiment", [*rows, *rows[:3]])
    assert cli.main(["init", "my reviews.csv"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "review texts of about 11 words",
        "2,003 rows of my reviews.csv, 3 with a text that is there before; Latin letters, 0 % of the tokens unknown",
        "label: sentiment (by its name): 2 labels: good 50 %, bad 50 %",
        f"written: {folder}/my-reviews.yaml; next: featherweight compress my-reviews.yaml",
    ):
        assert words in said
    assert "  source: file:my reviews.csv\n" in (folder / "my-reviews.yaml").read_text(encoding="utf-8")


def test_a_recipe_is_not_overwritten_unless_it_is_asked_for(folder: Path) -> None:
    path = semicolons(folder)
    (folder / "a.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(FeatherweightError, match=r"a.yaml is there already; overwrite it with --force, or name --outp"):
        begin(path)
    assert (folder / "a.yaml").read_text(encoding="utf-8") == "mine"
    begin(path, force=True)
    assert load(folder / "a.yaml").name == "a"


def test_paths_count_from_the_recipe(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "recipes").mkdir()
    base, _ = tiny_recipes.sources(folder)
    semicolons(folder / "data")
    found = begin("data/a.csv", output="recipes/mine.yaml", base_model="base")
    written = yaml.safe_load(found.recipe)
    assert written["data"]["source"] == "file:../data/a.csv"
    assert written["base_model"] == "../base"
    recipe = load(Path("recipes/mine.yaml"))
    assert Path(recipe.base_model).resolve() == base
    assert prepared(recipe)


def test_what_is_said_holds(folder: Path) -> None:
    rows = [(f"{text} end", text, "no", i % 5, label) for i, (text, label) in enumerate(sentences(200))]
    path = write(folder / "a.csv", "one,other,same,stars,label", rows)
    with pytest.raises(FeatherweightError, match="'one' and 'other' could each be the text; name one with --text"):
        begin(path)
    found = begin(path, text="other", label="stars", problem="text-regression")
    recipe = load(found.path)
    assert (recipe.data.text, recipe.data.label, recipe.problem) == ("other", "stars", "text-regression")
    assert prepared(recipe) == 200
    for said, message in (
        ({"text": "othr"}, "there is no column 'othr'; .*; did you mean 'other'[?] Set --text"),
        ({"text": "other", "label": "stern"}, "there is no column 'stern'; .* Set --label"),
        ({"problem": "translation"}, "problem: 'translation' is not known; choose one of text-classification"),
        ({"text": "other", "label": "same"}, "every row has the label 'no'"),
    ):
        with pytest.raises(FeatherweightError, match=message):
            begin(path, force=True, **said)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("file:data/Straße & Söhne (2).csv", "Strae-Sohne-2"),
        ("file:評価.csv", "my-model"),
        ("file:Default.csv", "my-model"),
        ("hf:stanfordnlp/imdb/plain_text", "imdb-plain_text"),
        ("hf:imdb", "imdb"),
        ("demo:movie-snippets", "movie-snippets"),
        (f"file:{'x' * 300}.csv", "x" * 100),
    ],
)
def test_a_name_that_a_recipe_may_have(source: str, name: str) -> None:
    assert init.name_of(source) == name
    assert Recipe(name=name)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@example("a: b # c")
@example("2:4")
@example("no")
@example("<<")
@example("a\nb\n\n c")
@example("\"x\" \\ 'y'")
@example("- a")
@example("{a}")
@example("評\u2028価\x07\ufeff")
@example(" a ")
def test_any_name_of_a_column_is_read_back(name: str) -> None:
    line = init._line("text: ", name, "a remark # with\nanything: in\x07 it")
    assert "\n" not in line
    assert recipe_files._parse(f"data:\n  {line}\n", "recipe") == {"data": {"text": name}}


def test_a_recipe_with_odd_names_is_taken(folder: Path) -> None:
    text, label = "what did you think?: \"all\" of 'it' # ß", "class: - {a}, 評価"
    rows = [{text: words, label: kind} for words, kind in sentences(200)]
    found = begin(write_jsonl(folder / "it's: a #1 ß.jsonl", rows))
    recipe = load(found.path)
    assert (recipe.data.text, recipe.data.label) == (text, label)
    assert prepared(recipe) == 200


@pytest.mark.slow
def test_the_recipe_runs(folder: Path) -> None:
    from flows.compress import compress

    usual = tiny_recipes.write(folder).model_dump(mode="json", exclude_unset=True)
    assert cli.main(["init", "rows.csv", "--base-model", "base"]) == 0
    quick = {name: usual[name] for name in ("training", "distillation", "pruning", "validation", "budget")}
    (folder / "quick.yaml").write_text(yaml.safe_dump({"extends": "rows.yaml", **quick}), encoding="utf-8")
    outcome = compress(recipe_files.load("quick.yaml"))
    assert outcome.verdict.passed, outcome.verdict.reason

"""Recipes: every ready one is valid, and whatever is wrong with one is said in a line that can be acted on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from flows.command import recipe_fields, recipe_files
from flows.recipe import Recipe
from tasks.contracts.base import FeatherweightError
from tasks.engine.keys import Outside


def write(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize("name", recipe_files.ready_names())
def test_ready_recipes_are_valid(name: str) -> None:
    recipe = recipe_files.load(name)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_the_shortest_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, "name: mine\ndata: {source: file:rows.csv}\nbase_model: some/model\n")
    recipe = recipe_files.load(path)
    assert (recipe.name, recipe.base_model, recipe.training) == ("mine", "some/model", Recipe().training)


def test_relative_paths_count_from_the_recipes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "base").mkdir(parents=True)
    text = "data: {source: file:rows.csv, unlabeled: file:../more.csv}\nbase_model: base\n"
    path = write(tmp_path / "deep", text)

    def paths(name: str, *changes: str) -> tuple[str, str, str]:
        recipe = recipe_files.load(name, changes)
        return recipe.data.source, recipe.data.unlabeled, recipe.base_model

    folder = tmp_path / "deep"
    assert paths(path) == (f"file:{folder}/rows.csv", f"file:{folder}/../more.csv", f"{folder}/base")
    monkeypatch.chdir(tmp_path)
    assert paths("deep/mine.yaml") == ("file:deep/rows.csv", "file:deep/../more.csv", "./deep/base")
    assert paths("deep/mine.yaml", "data.source=file:here.csv", "base_model=base") == (
        "file:here.csv", "file:deep/../more.csv", "base"
    ), "what is said with the command counts from where it is run"  # fmt: skip
    monkeypatch.chdir(folder)
    assert paths("mine.yaml") == ("file:rows.csv", "file:../more.csv", "base")
    unchanged = "data: {source: 'file:~/rows.csv', unlabeled: 'hf:some/rows'}\nbase_model: package:base/model\n"
    assert paths(write(tmp_path, unchanged)) == ("file:~/rows.csv", "hf:some/rows", "package:base/model")
    assert paths(write(tmp_path, "base_model: ./nowhere\n"))[2] == f"{tmp_path}/nowhere"


def test_every_field_that_may_hold_a_path_is_known_as_one() -> None:
    def named(*path: str) -> Iterator[tuple[str, ...]]:
        for group in recipe_fields.groups(path):
            for name, field in group.model_fields.items():
                if any(isinstance(mark, Outside) for mark in field.metadata):
                    yield *path, name
                yield from named(*path, name)

    assert {*named(), ("base_model",)} == {*recipe_files.SOURCES, *recipe_files.MODELS}


def test_a_pattern_needs_no_quotes(tmp_path: Path) -> None:
    path = write(tmp_path, "pruning: {sparsity: {pattern: 2:4}}\n")
    assert recipe_files.load(path).pruning.sparsity.pattern == "2:4"
    assert recipe_files.load(path, ["pruning.sparsity.pattern=1:30"]).pruning.sparsity.pattern == "1:30"
    with pytest.raises(FeatherweightError, match=r"training\.epochs: must be a valid number.*got '1:30'"):
        recipe_files.load(path, ["training.epochs=1:30"])


def test_changes_are_applied_in_order_and_parsed_as_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, "name: mine\ntraining: {epochs: 3, batch_size: 8}\n")
    changes = [
        "training.epochs=2",
        "training.epochs=0.5",
        "export.opset=21",
        "data.source=file:a=b #1.csv",
    ]
    recipe = recipe_files.load(path, changes)
    assert recipe.training.epochs == 0.5
    assert recipe.training.batch_size == "8"
    assert recipe.export.opset == 21
    assert recipe.data.source == "file:a=b #1.csv"  # in an argument no # begins a remark


def test_a_file_of_data_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("text,label\ngood,yes\n", encoding="utf-8")
    with pytest.raises(FeatherweightError, match=r"this is a file of data; 'featherweight init .*reviews\.csv' writes"):
        recipe_files.load(str(tmp_path / "reviews.csv"))


def test_a_goal_that_is_misspelled_is_named_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ngoal: smalest\n", encoding="utf-8")
    with pytest.raises(FeatherweightError, match="did you mean 'smallest'"):
        recipe_files.load(str(path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "recipe mine.yaml: is empty; a recipe is a mapping"),
        ("- a\n", "recipe mine.yaml: holds a list"),
        ("name: a\ntraining: {epochs: 1\n", "recipe mine.yaml: line 3, column 1: "),
        ("name: a\nname: b\n", "recipe mine.yaml: line 2, column 1: 'name' is written twice"),
        (b"name: \xff\n", "recipe mine.yaml: byte 6 is not UTF-8; save it as UTF-8"),
        ("nmae: a\n", "recipe mine.yaml: unknown key 'nmae'; did you mean 'name'?"),
        ("training: {epoch: 1}\n", "recipe mine.yaml: training: unknown key 'epoch'; did you mean 'epochs'?"),
        ("export: {zzz: 1}\n", "recipe mine.yaml: export: unknown key 'zzz'; known keys are opset"),
        ("training: {epochs: -1}\n", "recipe mine.yaml: training.epochs: must be greater than 0 (got -1)"),
        ("training: {epochs: many}\n", "recipe mine.yaml: training.epochs: must be a valid number"),
        ("training: 3\n", "recipe mine.yaml: training: must be a group of fields (got 3)"),
        (
            "validation: {device: gpu}\n",
            "recipe mine.yaml: validation.device: must be 'auto', 'cpu' or 'cuda' (got 'gpu')",
        ),
        (
            "problem: poetry\n",
            "recipe mine.yaml: problem: must be 'text-classification', 'text-regression' or 'causal-lm' (got 'poetry')",
        ),
        ("name: ../up\n", "recipe mine.yaml: name: '../up' does not match"),
        (
            "pruning: {sparsity: {method: wanda}}\nquantization: {training: {steps: 1}}\n",
            "quantization: training fills the zeros of pruning.sparsity",
        ),
        (
            "quantization: {embeddings: int4, block_size: 24}\n",
            "quantization: block_size: the runtime has no blocks of 24; choose one of 16, 32, 64, 128, 256",
        ),
        (
            "pruning: {width: {target_speedup: 0.5}}\n",
            "recipe mine.yaml: pruning.width.target_speedup: must be greater than or equal to 1 (got 0.5)",
        ),
        (
            "pruning: {width: {target_speedup: 2, keep_ffn: 0.5}}\n",
            "recipe mine.yaml: pruning.width: unknown key 'keep_ffn'",
        ),
        ("pruning: {width: 0.5}\n", "recipe mine.yaml: pruning.width: must be a group of fields (got 0.5)"),
        ("pruning: {sparsity: {pattern: '4:2'}}\n", "pruning: sparsity: pattern: 4 of 2 weights cannot be kept"),
        ("training: {batch_size: 0}\n", "recipe mine.yaml: training.batch_size: '0' does not match"),
        ("training: {batch_size: 9 rows}\n", "(Rows per optimizer step, such as 32; or as many as fit"),
        ("goal: best\n", "recipe mine.yaml: goal: 'best' is none of balanced, smallest, fastest, faithful"),
        ("goal: 3\n", "recipe mine.yaml: goal: 3 is none of balanced"),
        ("goal: balanced\nbase_model: ./nowhere\n", "nowhere' does not exist"),
        ("extends: demos\n", "recipe mine.yaml: extends: recipe"),
        ("extends: mine.yaml\n", "recipe mine.yaml: extends itself: mine.yaml extends mine.yaml"),
        ("extends: [demo]\n", "recipe mine.yaml: extends: name a ready recipe or a file"),
        ("name: Default\n", "recipe mine.yaml: name: 'Default' is MLflow's own experiment"),
        ("deployment: {alias: latest}\n", "deployment: alias: 'latest' is a name that MLflow keeps for itself"),
        ("deployment: {alias: v2}\n", "deployment: alias: 'v2' is a name that MLflow keeps for itself"),
        ("deployment: {alias: previous}\n", "deployment: alias: 'previous' is the champion before the present one"),
        ("data: {text: x, label: x}\n", "recipe mine.yaml: data: text and label are both column 'x'"),
        (
            "data: {test_fraction: 0.59, selection_fraction: 0.39}\n",
            "less than 0.95 is needed to leave rows to train on",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(text: str | bytes, expected: str, tmp_path: Path) -> None:
    with pytest.raises(FeatherweightError) as error:
        recipe_files.load(write(tmp_path, text))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_each_wrong_field_gets_its_line(tmp_path: Path) -> None:
    with pytest.raises(FeatherweightError) as error:
        recipe_files.load(write(tmp_path, "training: {epochs: 0, batch_size: 0}\n"))
    found = {line.split(": ")[1] for line in str(error.value).splitlines()}
    assert found == {"training.epochs", "training.batch_size"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("demos", "did you mean 'demo'?"),
        ("nothing-like-it", "ready recipes are"),
        ("../demo", "recipe '../demo': no such file"),
        ("some/where", "recipe 'some/where': no such file"),
        ("absent.yaml", "recipe 'absent.yaml': no such file (looked for '/"),
        ("~nosuch/x.yaml", "recipe: '~nosuch/x.yaml' begins with the home of a user that is not known"),
        ("x" * 300, "cannot be looked for: File name too long"),
        ("/tmp", "is a directory"),
    ],
)
def test_a_name_that_is_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FeatherweightError, match=r"^recipe") as error:
        recipe_files.load(name)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("training.epochs", "write key.path=value"),
        ("=3", "write key.path=value"),
        ("training..epochs=3", "write key.path=value"),
        ("name.first=x", "name: must be a valid string (got {'first': 'x'})"),
        ("training.epochs.first=x", "training.epochs: must be a valid number"),
        ("training=3", "training: must be a group of fields (got 3)"),
        ("name=[", "--set 'name=[': line 1, column 2: "),
        ("training.epoks=3", "training: unknown key 'epoks'; did you mean 'epochs'?"),
    ],
)
def test_a_change_that_cannot_be_made(change: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(FeatherweightError) as error:
        recipe_files.load(write(tmp_path, "name: mine\n"), [change])
    assert expected in str(error.value)


def models(model: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [group for name in model.model_fields for group in recipe_fields.groups([name], model)]
    return [model, *(found for group in inner for found in models(group))]


@pytest.mark.parametrize("model", models(Recipe), ids=lambda model: model.__name__)
def test_every_field_has_a_title_and_every_value_a_sentence_and_a_working_default(model: type[BaseModel]) -> None:
    assert model() == model.model_validate_json(model().model_dump_json())
    for name, field in model.model_fields.items():
        assert field.title, name
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            assert field.description, name
            assert field.description.endswith("."), name


def test_recovery_hears_of_quantization_only_where_it_heals_it() -> None:
    quantized = {"embeddings": "int4", "block_size": 64}
    assert Recipe.model_validate({"quantization": quantized}).for_pruning()["rounding"] is None
    pruning = {"heal_rounding": True, "embeddings": "frozen"}
    recipe = Recipe.model_validate({"quantization": quantized, "pruning": pruning})
    assert recipe.for_pruning() == {"rounding": {"token_bits": 4, "block_size": 64}, "integer": False}
    timed = Recipe.model_validate({"pruning": {"width": {"target_speedup": 2}}})
    assert timed.for_pruning() == {"rounding": None, "integer": True}

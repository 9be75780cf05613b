"""What a recipe is made of: what it extends, its goal, itself, and changes; each lies over those before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import goals, preflight
from flows.command import recipe_files, recipe_layers, renamed
from flows.goals import AIMS, Goal
from flows.recipe import Recipe
from tasks.contracts.base import FeatherweightError
from tests.flows.test_preflight import model


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_what_is_written_wins_over_what_is_extended(tmp_path: Path) -> None:
    write(tmp_path, "team.yaml", "extends: demo\nname: team\ntraining: {epochs: 2}\n")
    mine = write(tmp_path, "mine.yaml", "extends: team.yaml\ntraining: {batch_size: 8}\n")
    recipe, demo = recipe_files.load(mine, ["seed=5"]), recipe_files.load("demo")
    assert (recipe.name, recipe.training.epochs, recipe.training.batch_size, recipe.seed) == ("team", 2, "8", 5)
    assert recipe.training.learning_rate == demo.training.learning_rate
    assert recipe.pruning == demo.pruning


def test_paths_of_what_is_extended_count_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    write(tmp_path / "team", "base.yaml", "data: {source: file:rows.csv}\n")
    mine = write(tmp_path, "mine.yaml", "extends: team/base.yaml\n")
    assert recipe_files.load(mine).data.source == f"file:{tmp_path}/team/rows.csv"


def test_recipes_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "extends: b.yaml\n")
    write(tmp_path, "b.yaml", "extends: a.yaml\n")
    with pytest.raises(FeatherweightError, match=r"extends itself: a\.yaml extends b\.yaml extends a\.yaml"):
        recipe_files.load(str(tmp_path / "a.yaml"))


def test_a_field_beats_the_goal_beside_it_and_a_goal_what_is_extended(tmp_path: Path) -> None:
    text = "goal: smallest\ndistillation: {layers: 5}\nbudget: {min_shrink: 7}\n"
    recipe = recipe_files.load(write(tmp_path, "mine.yaml", text))
    aim = AIMS[Goal.SMALLEST]
    assert (recipe.distillation.layers, recipe.budget.min_shrink) == (5, 7)
    assert recipe.budget.max_quality_drop == aim.max_quality_drop
    child = write(tmp_path, "child.yaml", "extends: mine.yaml\ngoal: faithful\n")
    recipe = recipe_files.load(child)
    assert (recipe.distillation.layers, recipe.budget.min_shrink) == (6, AIMS[Goal.FAITHFUL].min_shrink)
    assert recipe_files.load(child, ["goal=fastest"]).distillation.layers == 2


def test_a_group_of_another_kind_replaces_the_one_below(tmp_path: Path) -> None:
    mine = write(tmp_path, "mine.yaml", "extends: demo\npruning: {width: {keep_ffn: 0.4}}\n")
    assert recipe_files.load(mine).pruning.width.model_dump() == {"keep_ffn": 0.4, "keep_heads": 0.75}
    more = write(tmp_path, "more.yaml", "extends: demo\npruning: {width: {request_rows: 8}}\n")
    width = recipe_files.load("demo").pruning.width.model_dump()
    assert recipe_files.load(more).pruning.width.model_dump() == {**width, "request_rows": 8}


@pytest.mark.parametrize("goal", Goal)
@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("WordPiece", {}),
        ("BPE", {"num_hidden_layers": 12, "hidden_size": 768}),
        ("Unigram", {"num_hidden_layers": 1, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}),
    ],
)
def test_a_goal_suits_the_base_model(tmp_path: Path, goal: Goal, kind: str, shapes: dict[str, Any]) -> None:
    base = model(tmp_path, kind=kind, **shapes)
    recipe = Recipe.model_validate(goals.fields(goal, base))
    assert list(preflight.objections(recipe, base)) == []
    assert 1 <= recipe.distillation.layers <= base.config["num_hidden_layers"]
    assert recipe.pruning.keep_vocabulary == 1 or kind == "WordPiece"


def test_goals_differ_in_what_they_are_for() -> None:
    assert AIMS[Goal.SMALLEST].min_shrink == max(aim.min_shrink for aim in AIMS.values())
    assert AIMS[Goal.FASTEST].min_speedup == max(aim.min_speedup for aim in AIMS.values())
    assert AIMS[Goal.FAITHFUL].max_quality_drop == min(aim.max_quality_drop for aim in AIMS.values())


def test_a_recipe_is_shown_with_where_each_value_comes_from(tmp_path: Path) -> None:
    mine = write(tmp_path, "mine.yaml", "extends: demo\nname: mine\ngoal: smallest\ntraining: {epochs: 1}\n")
    layers = recipe_files.read(mine, ["seed=3"])
    shown = recipe_layers.described(layers, mine)
    where = {
        path: shown.origins[path] for path in ("name", "training.epochs", "training.dropout", "seed", "export.opset")
    }
    assert where == {
        "name": "mine.yaml", "training.epochs": "mine.yaml", "training.dropout": "recipe demo", "seed": "--set",
        "export.opset": "default",
    }  # fmt: skip
    assert shown.origins["distillation.layers"] == "goal smallest"
    assert set(shown.origins.values()) == {"mine.yaml", "recipe demo", "goal smallest", "--set", "default"}
    text = recipe_layers.as_yaml(shown)
    again = write(tmp_path, "again.yaml", text)
    assert recipe_files.load(again) == recipe_files.load(mine, ["seed=3"])
    assert all("  # " in line for line in text.splitlines() if not line.endswith(":"))


VALUES = {
    "precision": "bf16", "compile": "auto", "batching": "shuffled", "activation_checkpointing": True,
    "offload_optimizer": True, "parallelism": "sharded", "augmentation_kind": "both",
    "augmentation_model": "package:a/b",
    "sparsity": "magnitude", "sparsity_pattern": "1:4", "sparsity_fraction": 0.75,
    "require_gpu": True,
    "served_as": "fp32", "temperature": 3, "keep_ffn": 0.25, "keep_heads": 0.5, "dropout": 0.2,
}  # fmt: skip
"""By the old field's name, something that it could be; else 2."""


@pytest.mark.parametrize("path", renamed.RENAMED)
def test_an_old_field_is_refused_with_the_line_that_is_right(tmp_path: Path, path: str) -> None:
    *groups, name = path.split(".")
    value = VALUES.get(name, 2)
    old: dict[str, Any] = {name: value}
    for group in reversed(groups):
        old = {group: old}
    with pytest.raises(FeatherweightError) as error:
        recipe_files.load(write(tmp_path, "old.yaml", yaml.safe_dump(old)))
    start = f"recipe old.yaml: {path}: is a field of older recipes; "
    (said,) = (line for line in str(error.value).splitlines() if line.startswith(start))
    advice = said.removeprefix(start)
    if advice.startswith("write "):
        right = recipe_files.load(write(tmp_path, "new.yaml", advice.removeprefix("write ") + "\n"))
        assert str(value) in str(right.model_dump(mode="json")) or name == "require_gpu"
        assert right != Recipe() or name == "served_as"
    else:
        assert advice.startswith(("leave", "say steps in "))


def test_what_meant_nothing_in_an_old_recipe_is_left_out() -> None:
    assert renamed.advice("pruning.target_speedup", 0.0).startswith("leave it out")
    assert renamed.advice("distillation.augmentation", 0).startswith("leave it out")
    assert renamed.advice("quantization.training.epochs", 0) == "leave quantization.training out"
    assert renamed.advice("training.epochs", 3) == ""

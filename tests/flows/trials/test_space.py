"""The space: what it derives from recipe and teacher, what a user may change, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.recipe import Recipe
from flows.trials import space
from tasks.contracts.base import FeatherweightError
from tasks.ml.models.inspection import Inspection


def of_shape(
    directory: Path, *, layers: int = 12, heads: int = 12, hidden: int = 384, kind: str = "WordPiece"
) -> Inspection:
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"type": kind}}))
    sizes = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": hidden}
    return Inspection(directory, {"model_type": "bert", "intermediate_size": 4 * hidden, **sizes}, {})


@pytest.fixture
def twelve(tmp_path: Path) -> Inspection:
    return of_shape(tmp_path)


def test_steps_are_coarse_and_hold_the_recipe_s_own_values(twelve: Inspection) -> None:
    recipe = Recipe.model_validate({"pruning": {"width": {"keep_ffn": 0.4}}, "distillation": {"layers": 3}})
    found = space.of(recipe, twelve, {})
    assert found.values["distillation.layers"] == (2, 3, 4, 6, 8, 10, 12)
    assert found.values["pruning.width.keep_ffn"] == (0.25, 0.4, 0.5, 0.75, 1.0)
    assert found.values["quantization.embeddings"] == ("none", "int8", "int4")
    assert len(found) == len(list(found.points()))
    assert found.nearest(recipe) in found.points()
    assert found.nearest(recipe)["pruning.width.keep_ffn"] == 0.4


def test_few_units_have_few_steps() -> None:
    assert space.depths(2) == (1, 2)
    assert space.fractions(12) == (0.25, 0.5, 0.75, 1.0)
    assert [max(1, round(2 * fraction)) for fraction in space.fractions(2)] == [1, 2]
    assert space.fractions(1) == (0.25,) or space.fractions(1) == (1.0,)


def test_what_a_model_cannot_be_is_no_step(tmp_path: Path) -> None:
    found = space.of(Recipe(), of_shape(tmp_path, layers=3, heads=4, kind="Unigram"), {})
    assert found.values["pruning.keep_vocabulary"] == (1.0,)
    assert found.values["distillation.layers"] == (1, 2, 3)
    narrow = space.of(Recipe(), of_shape(tmp_path, layers=3, heads=4, hidden=40), {})
    assert narrow.values["quantization.embeddings"] == ("none", "int8"), "32 does not divide 40 columns"
    integers = Recipe.model_validate({"quantization": {"scheme": "int8-static", "smoothing": 0.5}})
    assert space.of(integers, of_shape(tmp_path), {}).values["quantization.scheme"] == ("int8-dynamic",)


def test_a_user_narrows_it_and_adds_to_it(twelve: Inspection) -> None:
    found = space.of(Recipe(), twelve, {"pruning.width.keep_ffn": [0.5], "pruning.steps": [2, 1, 2]})
    assert found.values["pruning.width.keep_ffn"] == (0.5,)
    assert found.values["pruning.steps"] == (1, 2)


@pytest.mark.parametrize(
    ("path", "values", "said"),
    [
        ("data.max_rows", [10], "only fields of distillation, pruning, quantization, export vary"),
        ("pruning", [10], "only fields of"),
        ("pruning.width.keep_ffn", [], "name at least one value"),
        ("pruning.width.keep_ffn", [0.5, 2], "pruning.width.keep_ffn: must be less than or equal to 1"),
        ("distillation.layers", [6, 13], "13 are more than the base model's 12"),
        ("pruning.width.keep_fnn", [0.5], "unknown key 'keep_fnn'; did you mean 'keep_ffn'"),
    ],
)
def test_what_cannot_vary_is_refused(twelve: Inspection, path: str, values: list[float], said: str) -> None:
    with pytest.raises(FeatherweightError, match=said):
        space.checked(Recipe(), twelve, path, values)

"""The space: what it derives from recipe and teacher, what a user may change, and what is refused."""

from __future__ import annotations

import pytest

from flows import space
from flows.recipe import Recipe
from tasks import store
from tasks.contracts import FeatherweightError
from tests.tasks import tiny_models

TWELVE = space.Teacher(layers=12, heads=12, wordpiece=True)


def test_steps_are_coarse_and_hold_the_recipe_s_own_values() -> None:
    recipe = Recipe.model_validate({"pruning": {"keep_ffn": 0.4}, "distillation": {"layers": 3}})
    found = space.of(recipe, TWELVE, {})
    assert found.values["distillation.layers"] == (2, 3, 4, 6, 8, 10, 12)
    assert found.values["pruning.keep_ffn"] == (0.25, 0.4, 0.5, 0.75, 1.0)
    assert found.values["quantization.embeddings"] == ("none", "int8", "int4")
    assert len(found) == len(list(found.points()))
    assert found.nearest(recipe) in found.points()
    assert found.nearest(recipe)["pruning.keep_ffn"] == 0.4


def test_few_units_have_few_steps() -> None:
    assert space.depths(2) == (1, 2)
    assert space.fractions(12) == (0.25, 0.5, 0.75, 1.0)
    assert [max(1, round(2 * fraction)) for fraction in space.fractions(2)] == [1, 2]
    assert space.fractions(1) == (0.25,) or space.fractions(1) == (1.0,)


def test_a_teacher_is_read_without_its_weights() -> None:
    bundle = tiny_models.publish_model(tiny_models.model())
    assert space.teacher(store.path(bundle.digest)) == space.Teacher(layers=2, heads=4, wordpiece=False)
    fixed = space.of(Recipe(), space.Teacher(2, 4, wordpiece=False), {}).values["pruning.keep_vocabulary"]
    assert fixed == (1.0,)


def test_a_user_narrows_it_and_adds_to_it() -> None:
    found = space.of(Recipe(), TWELVE, {"pruning.keep_ffn": [0.5], "pruning.epochs": [2, 1, 2]})
    assert found.values["pruning.keep_ffn"] == (0.5,)
    assert found.values["pruning.epochs"] == (1, 2)


@pytest.mark.parametrize(
    ("path", "values", "said"),
    [
        ("data.max_rows", [10], "only fields of distillation, pruning, quantization, export vary"),
        ("pruning", [10], "only fields of"),
        ("pruning.keep_ffn", [], "name at least one value"),
        ("pruning.keep_ffn", [0.5, 2], "pruning.keep_ffn: must be less than or equal to 1"),
        ("pruning.keep_fnn", [0.5], "unknown key 'keep_fnn'; did you mean 'keep_ffn'"),
    ],
)
def test_what_cannot_vary_is_refused(path: str, values: list[float], said: str) -> None:
    with pytest.raises(FeatherweightError, match=said):
        space.checked(Recipe(), path, values)

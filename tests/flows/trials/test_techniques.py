"""Which techniques a recipe uses, and what is compared with what."""

from __future__ import annotations

from typing import Any

import pytest

from flows.command import recipe_files
from flows.recipe import Recipe
from flows.trials.branch import variation
from flows.trials.techniques import TECHNIQUES, Arm, Technique, find, is_used, lacks, plan
from tasks.contracts.base import FeatherweightError
from tasks.ml.problem import problem_of
from tasks.prune import WidthConfig

LENT = ["replacements by a model"]
"""Techniques that the demo does not use, and that only a recipe can lend."""


def arm(recipe: Recipe, name: str) -> Arm:
    """What is compared of one technique in a recipe."""
    (found,), left_out = plan(recipe, [find(name)])
    assert left_out == {}
    return found


def differing(one: Any, other: Any, path: str = "") -> set[str]:
    """Paths of the fields in which two recipes differ."""
    if not isinstance(one, dict) or not isinstance(other, dict) or one.keys() != other.keys():
        return set() if one == other else {path}
    return {found for name in one for found in differing(one[name], other[name], f"{path}.{name}".lstrip("."))}


OF_ENCODERS = [name for name in recipe_files.ready_names() if not problem_of(recipe_files.load(name).problem).PER_TOKEN]


@pytest.mark.parametrize("ready", OF_ENCODERS)
def test_every_technique_can_be_taken_out_of_a_ready_recipe_or_put_in(ready: str) -> None:
    recipe = recipe_files.load(ready)
    arms, left_out = plan(recipe, TECHNIQUES)
    assert [one.technique.name for one in arms] == [one.name for one in TECHNIQUES if one.name not in left_out]
    assert set(left_out) == {*LENT, *([] if recipe.data.unlabeled else ["unlabeled text"])}
    for one in arms:
        technique = one.technique
        assert is_used(technique, one.used), technique.name
        assert not is_used(technique, one.spared), technique.name
        assert one.is_used == (one.used == recipe), technique.name
        difference = differing(one.used.model_dump(mode="json"), one.spared.model_dump(mode="json"))
        assert difference, technique.name
        changed = [f"{path}." for path in technique.off.keys() | technique.falls.keys()]
        assert all(any(one.startswith(f"{path}.") for one in changed) for path in difference), technique.name


def test_every_technique_lives_in_fields_of_the_line_and_has_a_name_of_its_own() -> None:
    for one in TECHNIQUES:
        assert one.on.keys() <= one.off.keys(), one.name
        assert isinstance(variation(Recipe(), one.off), Recipe)
        assert one.note.partition(":")[0] in {"distillation", "distillation and recovery", "pruning", "quantization"}
        assert not set(one.name) & set(",/"), "names are separated by commas, and metrics by slashes"
    assert len({one.name for one in TECHNIQUES}) == len(TECHNIQUES)


def test_every_choice_of_a_stage_is_a_technique_or_the_absence_of_one() -> None:
    """A scheme, a rounding or an importance that is new to a stage must be measured, too."""
    from tasks.distill import LayerChoice
    from tasks.prune import Importance, Sparsity
    from tasks.quantize import Calibration, EmbeddingScheme, Rounding, Scheme
    from tasks.tutoring import AugmentationKind

    choices = {
        "distillation.layer_choice": LayerChoice, "teaching.augmentation.kind": AugmentationKind,
        "pruning.importance": Importance, "pruning.sparsity.method": Sparsity, "quantization.scheme": Scheme,
        "quantization.embeddings": EmbeddingScheme, "quantization.calibration": Calibration,
        "quantization.rounding": Rounding,
    }  # fmt: skip
    for path, choice in choices.items():
        named = {changes[path] for one in TECHNIQUES for changes in (one.on, one.off) if path in changes}
        assert named - {None} == {value.value for value in choice} - {"both"}, path


def test_numbers_are_used_at_any_value_but_off_and_names_at_their_own_only() -> None:
    narrow = variation(Recipe(), {"pruning.width.keep_ffn": 0.3})
    assert is_used(find("FFN pruning"), narrow)
    assert arm(narrow, "FFN pruning").spared.pruning.width.keep_ffn == 1.0
    assert not is_used(find("FFN pruning"), variation(narrow, {"pruning.width.keep_ffn": 1.0}))
    plain = variation(Recipe(), {"quantization.embeddings": "none"})
    found = arm(plain, "int4 embeddings")
    assert not found.is_used, "neither its own value nor the other's"
    assert (found.used.quantization.embeddings, found.spared.quantization.embeddings) == ("int4", "int8")


def test_a_technique_that_only_a_recipe_can_lend_is_left_out_of_others() -> None:
    arms, left_out = plan(Recipe(), [find("unlabeled text"), find("labels")])
    assert [one.technique.name for one in arms] == ["labels"]
    assert "names nothing to use" in left_out["unlabeled text"]
    lent = variation(Recipe(), {"data.unlabeled": "file:more.txt"})
    assert arm(lent, "unlabeled text").spared == Recipe()
    models = {"teaching.augmentation": {"kind": "both", "model": "package:words"}}
    assert arm(variation(Recipe(), models), "replacements by a model").is_used


def test_what_a_technique_has_no_effect_without_is_on_both_sides() -> None:
    floats = variation(Recipe(), {"quantization.scheme": "none"})
    found = arm(floats, "GPTQ")
    assert not found.is_used
    assert {found.used.quantization.scheme, found.spared.quantization.scheme} == {"int8-dynamic"}
    static = variation(Recipe(), {"quantization.scheme": "int8-static"})
    assert arm(static, "GPTQ").spared == static, "what is needed is there"
    assert lacks(find("replacements"), Recipe()) == {"teaching.augmentation.per_text": 1.0}


def test_what_has_no_effect_is_not_used() -> None:
    timed = variation(Recipe(), {"pruning.width.target_speedup": 2.0})
    found = arm(timed, "FFN pruning")
    assert not found.is_used, "times decide how much goes, whatever keep_ffn says"
    assert found.used.pruning.width == WidthConfig(keep_ffn=0.5)
    assert found.spared.pruning.width == WidthConfig(keep_ffn=1.0)
    assert arm(timed, "pruning by measured times").is_used


def test_what_needs_integers_falls_with_them() -> None:
    rounded = variation(Recipe(), {"quantization.rounding": "gptq", "quantization.training.steps": 100})
    found = arm(rounded, "dynamic int8")
    assert found.used == rounded
    assert found.spared.quantization == variation(Recipe(), {"quantization.scheme": "none"}).quantization


def test_a_technique_that_does_not_go_with_the_recipe_is_left_out_with_the_reason() -> None:
    sparse = variation(Recipe(), {"pruning.sparsity.method": "wanda"})
    arms, left_out = plan(sparse, [find("aware training"), find("2:4 sparsity")])
    assert [one.technique.name for one in arms] == ["2:4 sparsity"]
    assert "training fills the zeros of pruning.sparsity" in left_out["aware training"]
    impossible = Technique("impossible", "", {"pruning.width.keep_ffn": 7.0}, {"pruning.width.keep_ffn": 1.0})
    _, left_out = plan(variation(Recipe(), {"pruning.width.keep_ffn": 1.0}), [impossible])
    assert left_out["impossible"] == "recipe: pruning.width.keep_ffn: must be less than or equal to 1 (got 7.0)"


def test_a_wrong_combination_is_explained() -> None:
    with pytest.raises(FeatherweightError, match=r"recipe: quantization: smoothing: needs an integer scheme"):
        variation(Recipe(), {"quantization.scheme": "fp16", "quantization.smoothing": 0.5})


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'magic' is not known; choose among hidden states, "):
        find("magic")

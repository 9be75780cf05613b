"""The run form that the Prefect UI makes of ``compress``: for a person, and nothing on it that does nothing.

``tests/golden/form.json`` is the schema as the server gets it. To write it anew after a field was added or changed:
``FEATHERWEIGHT_WRITE_GOLDEN=1 infra/run pytest tests/flows/command/test_form.py``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema

from flows import everyday as everyday_module
from flows.compress import compress
from flows.everyday import everyday
from flows.goals import AIMS, Goal
from flows.promote import promote, rollback
from flows.recipe import Recipe
from tasks.contracts.base import FeatherweightError

GOLDEN = Path(__file__).parents[2] / "golden" / "form.json"
SCHEMA: dict[str, Any] = json.loads(parameter_schema(compress).model_dump_json())


def definitions() -> dict[str, Any]:
    found: dict[str, Any] = SCHEMA["definitions"]
    return found


def groups() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, definition in definitions().items():
        if definition["type"] == "object":
            yield name, definition


def fields() -> Iterator[tuple[str, dict[str, Any]]]:
    for group, definition in groups():
        for name, field in definition["properties"].items():
            yield f"{group}.{name}", field


def test_the_form_is_what_it_was() -> None:
    if os.environ.get("FEATHERWEIGHT_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(SCHEMA, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    assert json.loads(GOLDEN.read_text(encoding="utf-8")) == SCHEMA


def test_groups_come_in_the_order_of_the_line() -> None:
    properties = definitions()["Recipe"]["properties"]
    order = sorted(properties, key=lambda name: properties[name]["position"])
    assert order[:4] == ["name", "problem", "data", "base_model"]
    assert order == list(Recipe.model_fields)
    stages = ["data", "training", "distillation", "pruning", "quantization", "export", "validation", "budget"]
    assert [name for name in order if name in stages] == stages


def test_every_field_has_a_title_and_a_default_and_every_plain_one_a_sentence() -> None:
    for name, field in fields():
        shared = definitions().get(str(field.get("$ref")).rpartition("/")[2], {})
        assert field.get("title") or shared.get("title"), name
        assert "default" in field, name
        if "$ref" not in json.dumps(field) or field.get("description"):
            assert field["description"].endswith((".", "…")), name


def leaves(definition: dict[str, Any]) -> Iterator[str]:
    """The fields that a person sees of a group whose choices are as they are by default."""
    for name, field in definition["properties"].items():
        reference = field.get("$ref") or next((one["$ref"] for one in field.get("anyOf", []) if field["default"]), "")
        group = definitions().get(reference.rpartition("/")[2], {})
        if group.get("type") == "object":
            yield from (f"{name}.{leaf}" for leaf in leaves(group))
        else:
            yield name


def test_the_full_form_and_the_everyday_one_are_short() -> None:
    assert len(list(leaves(definitions()["Recipe"]))) <= 90
    assert len(parameter_schema(everyday).properties) <= 12


def test_the_everyday_form_makes_a_recipe(monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(everyday_module, "line", lambda recipe: recipe)
    (tmp_path / "rows.csv").write_text(
        "review,stars\n"
        + "".join(f"opinion {n} of a film that I saw,{'bad' if n % 2 else 'good'}\n" for n in range(200))
    )
    source = f"file:{tmp_path / 'rows.csv'}"
    recipe: Any = everyday.fn(name="mine", data=source, goal=Goal.SMALLEST, make_champion=False)
    assert (recipe.name, recipe.data.source) == ("mine", source)
    assert (recipe.data.text, recipe.data.label, recipe.data.max_length) == ("review", "stars", 16)
    assert recipe.budget.max_quality_drop == 0.015
    assert recipe.budget.min_shrink == AIMS[Goal.SMALLEST].min_shrink
    assert recipe.deployment.alias == "candidate"
    with pytest.raises(FeatherweightError, match="name: 'a b' does not match"):
        everyday.fn(name="a b", data=source)


def test_only_groups_are_chosen_between_no_dictionary_is_open_and_nothing_ignored() -> None:
    text = json.dumps(SCHEMA)
    for name, field in fields():
        for one in field.get("anyOf", []):
            group = definitions()[one["$ref"].rpartition("/")[2]] if "$ref" in one else one
            assert group["type"] in ("object", "null"), f"{name}: a form makes nothing of it that one can fill"
    assert "oneOf" not in text
    assert all(definition["additionalProperties"] is False for _, definition in groups())
    assert "prefixItems" not in text


def test_choices_are_drop_downs_and_numbers_have_bounds() -> None:
    choices = {name: definition["enum"] for name, definition in definitions().items() if "enum" in definition}
    assert choices["Schedule"] == ["linear", "cosine"]
    assert choices["Device"] == ["auto", "cpu", "cuda"]
    for name, field in fields():
        if field.get("type") in ("number", "integer"):
            assert {"minimum", "exclusiveMinimum"} & field.keys(), name


@pytest.mark.parametrize("flow", [promote, rollback], ids=["promote", "rollback"])
def test_the_small_forms_explain_their_fields(flow: Any) -> None:
    schema = parameter_schema(flow)
    assert all(field["description"] for field in schema.properties.values())
    assert schema.required == ["name"]

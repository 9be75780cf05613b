"""The README tells the truth: its tree and recipe reference are what the code says, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flows.command import reference
from flows.recipe import Recipe

README = reference.README.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", reference.SECTIONS, ids=lambda path: path.name)
def test_what_is_written_from_the_code_is_up_to_date(path: Path) -> None:
    assert reference.up_to_date(path) == path.read_text(encoding="utf-8"), (
        "run: infra/run python -m flows.command.reference"
    )


def test_every_module_is_in_the_tree() -> None:
    tree = reference.tree()
    for folder in ("flows", "tasks"):
        for path in (reference.ROOT / folder).rglob("*.py"):
            if path.name != "__init__.py":
                assert re.search(rf"^ +{re.escape(path.name)} +\S", tree, re.MULTILINE), path


def number_of_groups(model: Any) -> int:
    groups = [field.annotation for field in model.model_fields.values() if reference._is_group(field)]
    return len(groups) + sum(map(number_of_groups, groups))


def test_every_field_is_in_the_reference() -> None:
    text = reference.reference()
    for name in ("name", "data.source", "training.learning_rate", "quantization.scheme", "budget.max_quality_drop"):
        assert f"| `{name}` |" in text
    assert text.count("\n#### ") == number_of_groups(Recipe)


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    assert links
    assert [link for link in links if not (reference.ROOT / link).exists()] == []

"""The bases: an error that a person can mend, a value that travels, a stage's configuration."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class FeatherweightError(ValueError):
    """The user can mend this: the message says what was wrong, where, and what would be right.

    Args:
        lines: one for each thing that is wrong. What they quote of names and data makes no further ones.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*(" ".join(line.splitlines()) for line in lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


def _sentences(schema: dict[str, Any]) -> None:
    """Puts each description, which may be a docstring of several lines, on one."""
    for field in schema.get("properties", {}).values():
        if "description" in field:
            field["description"] = " ".join(field["description"].split())


class Contract(BaseModel):
    """Base of everything that travels: frozen, and closed to unknown fields. A field's docstring describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, json_schema_extra=_sentences)


class StageConfig(Contract):
    """Base of a stage's configuration. Every field has a type, a bound, a title and a sentence with units."""

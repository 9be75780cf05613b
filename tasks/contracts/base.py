"""The bases: an error that a person can mend, a value that travels, a stage's configuration."""

from __future__ import annotations

from typing import Annotated, Any

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


def _for_a_form(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Puts each description, which may be a docstring of several lines, on one, and what a group adds to its base
    before what it has from there. Of a choice between groups only ``anyOf`` becomes tabs."""
    names = [*model.__annotations__, *model.model_fields]
    for name, field in schema.get("properties", {}).items():
        field["position"] = names.index(name)
        if "description" in field:
            field["description"] = " ".join(field["description"].split())
        if "oneOf" in field:
            field["anyOf"] = field.pop("oneOf")
            field.pop("discriminator", None)


class Contract(BaseModel):
    """Base of everything that travels: frozen, and closed to unknown fields. A field's docstring describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, json_schema_extra=_for_a_form)


class Plain:
    """Marks text that is all there is to it, such as the name of a column."""


PlainText = Annotated[str, Plain()]
"""Text that a cache key takes as it stands; see ``tasks.engine.keys``."""


class StageConfig(Contract):
    """Base of a stage's configuration. Every field has a type, a bound, a title and a sentence with units."""

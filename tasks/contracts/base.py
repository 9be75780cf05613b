"""The bases: an error that a person can mend, a value that travels, a stage's configuration."""

from __future__ import annotations

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


class Contract(BaseModel):
    """Base of everything that travels: frozen, and closed to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StageConfig(Contract):
    """Base of a stage's configuration. Every field has a type, a bound, a title and a sentence with units."""

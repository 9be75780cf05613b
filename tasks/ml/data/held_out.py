"""Who may open the test split: it judges, so nothing that trains, compresses or chooses may ever have seen it.

``@stage`` says here which stage is executing, and ``datasets`` asks before it opens a split. The answer is no for
whoever has not said who it is: other threads, other processes, a flow, a script.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager

TEST = "test"
MAY_OPEN = ("validate", "judge")
"""Stages that may open the test split."""

_asking: contextvars.ContextVar[str] = contextvars.ContextVar("featherweight_asking", default="")


class HeldOutError(RuntimeError):
    """Somebody who may not see the test split wanted to open it. A mistake in the code, never in a recipe."""


@contextmanager
def asking(stage: str) -> Iterator[None]:
    """Whatever is opened inside is opened for this stage."""
    token = _asking.set(stage)
    try:
        yield
    finally:
        _asking.reset(token)


def require(split: str) -> None:
    """Lets every split but ``test`` pass, and ``test`` for the stages that may open it.

    Raises:
        HeldOutError: somebody else asks for ``test``.
    """
    stage = _asking.get()
    if split == TEST and stage not in MAY_OPEN:
        who = f"stage {stage}" if stage else "somebody outside a stage"
        raise HeldOutError(
            f"{who} wanted to open the test split, which only {' and '.join(MAY_OPEN)} may; use the selection split"
        )

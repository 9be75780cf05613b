"""``@flow``: a Prefect flow that says which process runs it; no credentials leave it with an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import prefect

from flows.servers import orphans
from tasks.engine import redaction

P = ParamSpec("P")
R = TypeVar("R")


def flow(**options: Any) -> Callable[[Callable[P, R]], prefect.Flow[P, R]]:
    """Makes a function a flow.

    Prefect writes how a flow failed into its database, so an error has to be clean when it gets there.

    Args:
        options: of Prefect's own decorator.
    """

    def decorate(function: Callable[P, R]) -> prefect.Flow[P, R]:
        signed = prefect.flow(on_running=[orphans.sign], persist_result=False, **options)
        made: prefect.Flow[P, R] = signed(redaction.cleansing(function))
        return made

    return decorate

"""``@flow``: a Prefect flow that says which process runs it, and the MLflow run that its stages are below."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import prefect
from prefect.runtime import flow_run

from flows.servers import links, orphans
from tasks.engine import disk, redaction, store, tracking

if TYPE_CHECKING:
    from flows.recipe import Recipe

P = ParamSpec("P")
R = TypeVar("R")


def flow(**options: Any) -> Callable[[Callable[P, R]], prefect.Flow[P, R]]:
    """Makes a function a flow; no credentials leave it with an error.

    Prefect writes how a flow failed into its database, so an error has to be clean when it gets there.

    Args:
        options: of Prefect's own decorator.
    """

    def decorate(function: Callable[P, R]) -> prefect.Flow[P, R]:
        signed = prefect.flow(on_running=[orphans.sign], persist_result=False, **options)
        made: prefect.Flow[P, R] = signed(redaction.cleansing(function))
        return made

    return decorate


@contextmanager
def parent_run(
    kind: str, recipe: Recipe, about: Mapping[str, Any] = MappingProxyType({}), *, continues: str | None = None
) -> Iterator[str]:
    """Opens the MLflow run that all stages of a flow run are below; yields its id.

    Args:
        kind: what flow it is, by which runs are told apart: ``pipeline`` for ``compress``.
        about: parameters beside the recipe's.
        continues: the run to go on with, if it still exists.
    """
    disk.require_free_space()
    store.sweep()
    orphans.close()
    tags = {
        "featherweight.kind": kind,
        "prefect.flow_run_id": flow_run.id or "",
        tracking.FLOW_RUN_URL_TAG: links.flow_run_url(),
    }
    params = {kind: dict(about), **recipe.model_dump(mode="json")}
    with tracking.pipeline_run(
        recipe.name, params, run_name=flow_run.name or kind, tags=tags, continues=continues
    ) as run_id:
        links.show_run(run_id)
        yield run_id

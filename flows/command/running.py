"""Flows in the process of the command, under an embedded Prefect API where no server is configured."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.states import State


def on_recipe(kind: str, recipe: str, changes: Sequence[str], config: Mapping[str, Any] | None = None) -> Any:
    """Runs a flow, of the same name as its module, on a recipe and returns what it came to.

    Args:
        config: fields of the flow's config, if it has one.

    Raises:
        FeatherweightError: the recipe, the config, the data or the base model is not right.
    """
    from flows.command import recipe_files, recipe_layers

    layers = recipe_files.read(recipe, changes)

    def prepare() -> Callable[[], Any]:
        from flows.trials import comparing

        loaded = recipe_layers.validate(layers, recipe)
        module = importlib.import_module(f"flows.{kind}")
        given = [loaded] if config is None else [loaded, comparing.checked(kind, module.CONFIG, config)]
        return lambda: getattr(module, kind)(*given, return_state=True)

    return in_prefect(prepare, heavy=True)


def in_prefect(prepare: Callable[[], Callable[[], State[Any]]], *, heavy: bool = False) -> Any:
    """Runs a flow and returns its result.

    Prefect and MLflow are imported, and a fresh MLflow database is migrated, while an embedded API starts.

    Args:
        prepare: imports the flow, and returns what calls it.
        heavy: whether the flow needs what the stages import, unless all is cached.
    """
    from flows.command import console
    from flows.servers import embedded

    with embedded.api() as server:
        with embedded.quick_imports():
            call = prepare()
            from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

            from tasks.engine import tracking

            tracking.client()
            if heavy and server is not None and server.is_first_start:
                # Nothing is cached in a new home, so what the stages import is wanted, and there is time now.
                import tasks.ml.models.modeling  # noqa: F401
        console.start_logging()
        if server is None:
            embedded.require_server()
            return _result(call())
        server.wait()
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):  # no one listens, and stopping takes 1 s
            return _result(call())


def _result(state: State[Any]) -> Any:
    """Takes the result out of a flow's final state, which holds one also when the verdict was not passed."""
    result = state.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        raise result
    return result

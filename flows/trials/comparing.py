"""What study, ablation and search share: their page, document and metrics, and what is said of wrong fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from prefect import Flow
from prefect.artifacts import create_markdown_artifact
from pydantic import ValidationError

from flows.command import console, recipe_fields
from flows.flow import flow
from tasks.contracts.base import Contract, FeatherweightError
from tasks.engine import disk, tracking
from tasks.report import versions
from tasks.reporting import page

AnyConfig = TypeVar("AnyConfig", bound=Contract)
P = ParamSpec("P")
R = TypeVar("R")


class Shown(Protocol):
    """A module that shows what was found: as a page, a document, metrics, and in short."""

    def render(self, found: Any, surroundings: page.Surroundings, /) -> str:
        """Returns the page."""
        ...

    def document(self, found: Any, /) -> dict[str, Any]:
        """Returns everything the page shows as JSON has it."""
        ...

    def metrics(self, found: Any, /) -> dict[str, float]:
        """Returns numbers to compare by, under names that never change."""
        ...

    def markdown(self, found: Any, /) -> str:
        """Returns the tables for a run's page."""
        ...

    def headline(self, found: Any, /) -> str:
        """Returns what was found in one sentence."""
        ...


def flow_of(kind: str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Makes a function the flow of this kind; wrong fields are explained by the flow, as on the command line.

    Runs are named by kind and time, so that those of many nights lie side by side.
    """
    return flow(
        name=kind, flow_run_name=lambda: f"{kind} {datetime.now(UTC):%Y-%m-%d %H:%M UTC}", validate_parameters=False
    )


def publish(shown: Shown, found: Any, *, kind: str) -> None:
    """Writes the page beside those of other runs, and logs it, the document and the numbers to the parent run."""
    run = tracking.Run(found.run_id)
    surroundings = page.Surroundings(datetime.now().astimezone(), versions(), run.url())
    html = shown.render(found, surroundings)
    disk.write_atomically(disk.home() / "reports" / f"{found.run_id}.html", html)
    run.text(html, f"{kind}.html")
    run.text(json.dumps(shown.document(found), indent=1), f"{kind}.json")
    run.metrics(shown.metrics(found))
    run.describe(shown.markdown(found))
    create_markdown_artifact(shown.markdown(found), key=kind, description=shown.headline(found))


def copy(shown: Shown, found: Any, path: Path) -> Path:
    """Writes the page to a path, and the document beside it with the ending ``.json``; returns the path."""
    disk.write_atomically(path, Path(str(console.report_path(found.run_id))).read_text(encoding="utf-8"))
    disk.write_atomically(path.with_suffix(".json"), json.dumps(shown.document(found), indent=1))
    return path


def checked(kind: str, config_type: type[AnyConfig], config: AnyConfig | Mapping[str, Any]) -> AnyConfig:
    """Makes a config of fields, such as those of a form or of the command line.

    Raises:
        FeatherweightError: with one line per field that is wrong.
    """
    try:
        return config_type.model_validate(config)
    except ValidationError as error:
        raise FeatherweightError(*recipe_fields.explain(error, kind, config_type)) from None

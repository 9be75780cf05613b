"""everyday: compress, with the few fields that a person with data needs."""

from __future__ import annotations

import logging
from typing import Annotated

from prefect.runtime import flow_run
from prefect.states import State
from pydantic import Field

from flows.command import recipe_layers
from flows.compress import line, run_name
from flows.flow import flow
from flows.goals import Goal
from flows.recipe import ProblemName, Recipe
from tasks.contracts.values import Outcome
from tasks.engine import disk
from tasks.engine.registry import CANDIDATE, CHAMPION
from tasks.ml.data import proposals

logger = logging.getLogger("featherweight")

Text = Annotated[str, Field(min_length=1)]
Points = Annotated[float, Field(ge=0, le=100)]
Gigabytes = Annotated[float, Field(ge=0, le=1e6)]


def _run_name() -> str:
    return run_name(str(flow_run.parameters["name"]))


# Prefect makes a field of each parameter, with its name as the title, and a line under it of what Args says. Without
# those that names say already, all fit on a screen.
@flow(name="everyday", flow_run_name=_run_name, validate_parameters=False)
def everyday(
    name: Text = "my-classifier",
    data: Text = "file:/path/to/rows.csv",
    text_column: str = "",
    label_column: str = "",
    problem: ProblemName = ProblemName("text-classification"),
    base_model: Text = Recipe().base_model,
    goal: Goal = Goal.BALANCED,
    largest_drop_in_points: Points = 1.5,
    memory_limit_in_gb: Gigabytes = 0,
    make_champion: bool = True,
) -> Outcome | State[Outcome]:
    """Train, shrink, prove and ship a model of your own data.

    ``name`` names the MLflow experiment and the registered model. ``base_model`` is package:PACKAGE/PATH, a directory
    or a hub name. ``goal`` sets techniques and the rest of the budget; ``memory_limit_in_gb`` is what training may
    hold, 0 sets no limit. How long texts are, and columns that are not named, are found out as by ``featherweight
    init``.

    Args:
        data: file:PATH on the worker (CSV, TSV, JSON, JSON Lines or Parquet), hf:NAME[/CONFIG] or demo:NAME.
        largest_drop_in_points: Of accuracy, or of 100 R² for scores, against the teacher.
        make_champion: Serve a model that passes; if not, it is registered as the candidate.
    """
    found = proposals.propose(
        data, base_model=base_model, cache=disk.home() / "cache", text=text_column, label=label_column, problem=problem
    )
    text, label = found.text.column.name, found.label.column.name
    logger.info("everyday: the text is %r (%s), the label is %r (%s)", text, found.text.why, label, found.label.why)
    for note in found.notes:
        logger.warning("everyday: %s", note)
    return line(
        recipe_layers.checked({
            "name": name,
            "problem": problem,
            "data": {"source": data, "text": text, "label": label, "max_length": found.max_length},
            "base_model": base_model,
            "goal": goal,
            "budget": {"max_quality_drop": largest_drop_in_points / 100},
            "compute": {"max_memory": memory_limit_in_gb},
            "deployment": {"alias": CHAMPION if make_champion else CANDIDATE},
        })
    )  # fmt: skip

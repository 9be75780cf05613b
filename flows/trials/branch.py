"""branch: one variation of a recipe, from the teacher to an exported candidate tried on the selection split."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from flows.command import recipe_fields
from flows.compress import shrunk
from flows.recipe import Recipe
from tasks.appraise import AppraisalConfig, appraise
from tasks.contracts.base import Contract, FeatherweightError
from tasks.contracts.values import Bundle, Splits, StageResult
from tasks.engine import quiet, tracking
from tasks.judge import floor
from tasks.prepare import prepare
from tasks.train import train

Look = Callable[[StageResult], str]
"""Is shown what each stage before the appraisal made; anything but an empty answer ends the branch and says why."""

turn = threading.Lock()
"""Random numbers, and what transformers and an export patch while they build and trace, are the process's: of its
threads one at a time works on a model. Branches that really go side by side are in processes of their own."""


class Branch(Contract):
    """What became of one variation."""

    stages: tuple[StageResult, ...]
    """In the order of the line; all of distill, prune, quantize, export, appraise unless it was given up."""
    given_up: str = ""
    """Why it ended before its end."""

    @property
    def last(self) -> StageResult:
        return self.stages[-1]

    def bundle(self, stage: str) -> Bundle:
        """The model that a stage made."""
        bundle = next(result.bundle for result in self.stages if result.stage == stage)
        assert bundle is not None
        return bundle

    def lineage(self, teacher: Bundle) -> dict[str, Bundle]:
        """The models that ``validate`` measures beside the exported one."""
        return {"train": teacher, **{stage: self.bundle(stage) for stage in ("distill", "prune", "quantize")}}


def value_of(recipe: Recipe, path: str) -> Any:
    """The value of a field, named by its path; ``None`` where the recipe has no such group."""
    found: Any = recipe
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def variation(recipe: Recipe, changes: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
    """The recipe with some fields changed, each named by its path, such as ``pruning.width.keep_ffn``.

    A field of a group that the recipe does not have, or has in its other kind, brings the group with it, and ``None``
    leaves the group as it is by default.

    Args:
        source: what errors say was wrong.

    Raises:
        FeatherweightError: a field does not exist, or not with this value or with the others.
    """
    values = recipe.model_dump(mode="json")
    for path, value in changes.items():
        *above, group, name = ["", *path.split(".")]
        target = values
        for one in above[1:]:
            target = target[one]
        if not group:
            values[name] = value
        elif value is None:
            target.pop(group, None)
        else:
            fields = target[group] or {}
            target[group] = {**(fields if name in fields else {}), name: value}
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise FeatherweightError(*recipe_fields.explain(error, source)) from None


def appraisal(recipe: Recipe) -> AppraisalConfig:
    """How a recipe's candidates are tried: where and as often as they would be validated."""
    shared = AppraisalConfig.model_fields.keys() & type(recipe.validation).model_fields.keys()
    return AppraisalConfig.model_validate(recipe.validation.model_dump(mode="json", include=set(shared)))


def taught(recipe: Recipe, seed: int, *, run_id: str) -> tuple[StageResult, StageResult]:
    """The recipe's data and its teacher, which every variation learns from.

    Raises:
        FeatherweightError: the teacher is not shown to be better than the majority answer, and the recipe's budget asks
            for that.
    """
    prepared = prepare(recipe.data, problem=recipe.problem, base_model=recipe.base_model, run_id=run_id)
    tracking.Run(run_id).dataset(recipe.data.source, prepared.splits.digest, rows=prepared.scorecard.num_rows)
    teacher = train(
        recipe.base_model, prepared.splits, recipe.training, compute=recipe.compute, seed=seed, run_id=run_id
    )
    if verdict := floor(teacher.evidence, recipe.budget, run_id=run_id):
        raise FeatherweightError(verdict.reason)
    return prepared, teacher


def grow(recipe: Recipe, splits: Splits, teacher: Bundle, *, run_id: str, look: Look = lambda result: "") -> Branch:
    """Makes the model that the recipe describes out of the teacher, and measures it on the selection split.

    What other branches made already is ``Cached``. The test split stays closed.
    """
    stages: list[StageResult] = []
    made = shrunk(recipe, splits, teacher, run_id=run_id)
    while not stages or stages[-1].stage != "export":
        with turn, quiet.work():
            stages.append(next(made))
        if reason := look(stages[-1]):
            return Branch(stages=tuple(stages), given_up=reason)
    quantized, exported = (result.bundle for result in stages[-2:])
    config = appraisal(recipe)
    with turn:
        stages.append(appraise(exported, splits, config, teacher=teacher, simulated=quantized, run_id=run_id))
    return Branch(stages=tuple(stages))

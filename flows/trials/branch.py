"""branch: one variation of a recipe, from the teacher to an exported candidate tried on the selection split."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from flows.recipe import Recipe
from tasks.appraise import AppraisalConfig, appraise
from tasks.contracts.base import Contract, FeatherweightError
from tasks.contracts.values import Bundle, Splits, StageResult
from tasks.distill import distill
from tasks.engine import quiet
from tasks.export import export
from tasks.judge import floor
from tasks.prune import prune
from tasks.quantize import quantize

Look = Callable[[StageResult], str]
"""Is shown what each stage before the appraisal made; anything but an empty answer ends the branch and says why."""

_torch = threading.Lock()
"""Random numbers, and what an export patches while it traces, are the process's: of its threads one at a time is in a
stage. Branches that really go side by side are in processes of their own."""


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


def variation(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with some fields changed, each named by its path, such as ``pruning.keep_ffn``.

    Raises:
        ValidationError: a field does not exist, or not with this value.
    """
    values = recipe.model_dump(mode="json")
    for path, value in changes.items():
        *groups, name = path.split(".")
        target = values
        for group in groups:
            target = target[group]
        target[name] = value
    return Recipe.model_validate(values)


def appraisal(recipe: Recipe) -> AppraisalConfig:
    """How a recipe's candidates are tried: where and as often as they would be validated."""
    shared = AppraisalConfig.model_fields.keys() & type(recipe.validation).model_fields.keys()
    return AppraisalConfig.model_validate(recipe.validation.model_dump(mode="json", include=set(shared)))


class _GivenUpError(Exception):
    """A look at what was measured so far says that going on is not worth it."""


def require_floor(recipe: Recipe, teacher: StageResult, *, run_id: str) -> None:
    """Lets a comparison begin only with a teacher that has learned something.

    Raises:
        FeatherweightError: it is not shown to be better than the majority answer, and the recipe's budget asks for it.
    """
    if verdict := floor(teacher.evidence, recipe.budget, run_id=run_id):
        raise FeatherweightError(verdict.reason)


def grow(recipe: Recipe, splits: Splits, teacher: Bundle, *, run_id: str, look: Look = lambda result: "") -> Branch:
    """Makes the model that the recipe describes out of the teacher, and measures it on the selection split.

    What other branches made already is ``Cached``. The test split stays closed.
    """
    done: list[StageResult] = []

    def seen(result: StageResult) -> StageResult:
        done.append(result)
        if reason := look(result):
            raise _GivenUpError(reason)
        return result

    try:
        with _torch, quiet.work():
            student = seen(distill(teacher, splits, recipe.distillation, seed=recipe.seed, run_id=run_id))
        with _torch, quiet.work():
            pruned = seen(
                prune(
                    student.bundle,
                    splits,
                    recipe.pruning,
                    teacher=teacher,
                    seed=recipe.seed,
                    rounding=recipe.rounding_to_heal(),
                    run_id=run_id,
                )
            )
        with _torch, quiet.work():
            quantized = seen(
                quantize(pruned.bundle, splits, recipe.quantization, teacher=teacher, seed=recipe.seed, run_id=run_id)
            )
            exported = seen(export(quantized.bundle, recipe.export, run_id=run_id))
    except _GivenUpError as end:
        return Branch(stages=tuple(done), given_up=str(end))
    config = appraisal(recipe)
    with _torch:
        measured = appraise(exported.bundle, splits, config, teacher=teacher, simulated=quantized.bundle, run_id=run_id)
    done.append(measured)
    return Branch(stages=tuple(done))

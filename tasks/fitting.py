"""What train, distill and prune share: fit a model, measure it on the selection split, publish it with its history."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tasks.contracts.hyperparameters import ComputeConfig, OptimizerConfig
from tasks.contracts.values import Scorecard, StageOutput
from tasks.engine import progress, publish, tracking
from tasks.engine.stage import checkpoint_directory

if TYPE_CHECKING:
    from torch import nn

    from tasks.ml.data.datasets import Split
    from tasks.ml.jobs.lessons import Lesson
    from tasks.ml.training.trainer import History

logger = logging.getLogger("featherweight")


def learn(
    title: str,
    model: nn.Module,
    lesson: Lesson,
    *,
    config: OptimizerConfig,
    compute: ComputeConfig,
    seed: int,
    apart: bool = False,
    **options: Any,
) -> History:
    """Trains a model in place; shows how far it is, and notes on the stage's run what it was done with.

    Args:
        apart: whether a process of its own trains also where one is enough, so that its memory is the training's alone.
        options: passed on to ``trainer.fit``.
    """
    from tasks.ml.jobs import elastic
    from tasks.ml.problem import problem_of

    with tracking.current().system_metrics(), progress.training(title, problem_of(lesson.problem).METRIC) as observer:
        settings = {
            "for_model": config.for_model() | compute.for_model(),
            "observer": observer,
            "checkpoint": checkpoint_directory(),
            "chosen_in": str(checkpoint_directory()),
            "seed": seed,
            **config.for_trainer(),
            **compute.for_trainer(),
            **options,
        }
        if apart or compute.num_processes > 1:
            history = elastic.learn(model, lesson, num_processes=compute.num_processes, **settings)
        else:
            history = lesson.learn(model, **settings)
    logger.info("%s: precision %s", title, history.notes["precision"])
    if "memory" in history.notes:
        tell(title, history.notes["memory"])
    tracking.current().tags({f"featherweight.{key}": str(value) for key, value in history.notes.items()})
    return history


def tell(title: str, held: Mapping[str, Any]) -> None:
    """Says what a run that was to stay below a limit held, from its notes; warns if that was more."""
    level = logging.WARNING if held["measured_mb"] > held["limit_mb"] else logging.INFO
    said = "%s: a process held up to %.0f MB; %.0f were predicted, and %.0f are allowed (max_memory)"
    logger.log(level, said, title, held["measured_mb"], held["predicted_mb"], held["limit_mb"])


def fit(
    title: str,
    model: nn.Module,
    tokenizer: Any,
    lesson: Lesson,
    *,
    train: Split,
    evidence: Mapping[str, str] | None = None,
    **options: Any,
) -> StageOutput:
    """Fits and publishes a model; reports its quality on the selection split and the gap to the training split.

    Args:
        train: labelled rows of the training split.
        evidence: files to publish beside the history, by name.
        options: passed on to ``learn``.
    """
    from tasks.ml.models import modeling
    from tasks.ml.problem import problem_of
    from tasks.ml.pruning import sparsity
    from tasks.ml.quality import evaluation, learning

    history = learn(title, model, lesson, **options)
    problem, selection = problem_of(lesson.problem), lesson.selection
    logits = evaluation.logits(model, selection.input_ids, pad_id=lesson.pad_id, problem=problem)
    quality = learning.measure(problem, logits, selection.targets, reference=lesson.reference)
    told = None if lesson.reference is None else learning.agreement(problem, logits, lesson.reference).rows
    answered = {"problem": lesson.problem, **problem.summary(model.config, train, logits, selection)}
    seen = train.head(len(selection))
    train_quality = learning.quality(model, problem, seen, pad_id=lesson.pad_id)["quality"]
    bundle, size_mb = publish.torch_bundle(model.cpu(), tokenizer, lesson.problem)
    speeds = [point["samples_per_s"] for point in history.points]
    return StageOutput(
        bundle=bundle,
        evidence=publish.evidence(
            {
                "history.json": history.to_json(),
                "answers.json": json.dumps(answered, indent=1, ensure_ascii=False),
                **(evidence or {}),
            }
        ),
        scorecard=Scorecard(
            split="selection",
            num_examples=len(selection),
            metric=problem.METRIC,
            quality=quality["quality"],
            loss=quality["loss"],
            train_quality=train_quality,
            overfit_gap=train_quality - quality["quality"],
            agreement_with_teacher=quality.get("agreement"),
            agreement_rows=told,
            drop_error=quality.get("drop_error"),
            num_parameters=modeling.num_parameters(model),
            size_mb=size_mb,
            sparsity=sparsity.fraction(model) if lesson.zeros else None,
            train_time_s=history.notes["training_s"],
            samples_per_s=sum(speeds) / len(speeds) if speeds else None,
        ),
    )

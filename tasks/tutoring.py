"""What distill and prune share: a smaller model learns from its teacher on training, augmented and unlabeled text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from tasks import fitting, store
from tasks.contracts import OptimizerConfig, Splits, StageOutput

if TYPE_CHECKING:
    from torch import nn


class TutoringConfig(OptimizerConfig):
    """What a model learns from its teacher, and on which text."""

    temperature: float = Field(
        2.0, gt=0, le=100, title="Temperature", description="Softens the logits of teacher and student."
    )
    logit_weight: float = Field(1.0, ge=0, title="Logit weight", description="Weight of the loss between logits.")
    hidden_weight: float = Field(
        1.0, ge=0, title="Hidden weight", description="Weight of the loss between hidden states."
    )
    attention_weight: float = Field(
        0.0, ge=0, title="Attention weight", description="Weight of the loss between attention relations."
    )
    label_weight: float = Field(0.0, ge=0, title="Label weight", description="Weight of the supervised loss.")
    augmentation: float = Field(
        1.0, ge=0, le=20, title="Augmentation", description="Sub-spans of training texts to add, per training text."
    )


def teach(
    title: str,
    student: nn.Module,
    teacher: nn.Module,
    tokenizer: Any,
    *,
    splits: Splits,
    layer_map: list[int],
    config: TutoringConfig,
    seed: int,
) -> StageOutput:
    """Fits the student to the teacher and publishes it.

    Args:
        tokenizer: encodes for both models.
        layer_map: teacher layer that each student layer learns.
    """
    import numpy as np

    from tasks.ml import augmentation, datasets, evaluation, lessons, problems, teaching, trainer

    data = store.path(splits.digest)
    trainer.seed_everything(seed)
    train, unlabeled, selection = (datasets.read(data, name, tokenizer) for name in ("train", "unlabeled", "selection"))
    spans = augmentation.sub_spans(train.texts, config.augmentation, seed=seed)
    rows = (
        train.input_ids
        + datasets.encode(spans, tokenizer, max_length=datasets.info(data).max_length)
        + unlabeled.input_ids
    )
    targets = np.full(len(rows), problems.get(splits.problem).NO_TARGET)
    targets[: len(train)] = train.targets
    device = trainer.default_device()
    student.to(device)
    teacher.to(device)
    weights = teaching.Weights(
        logits=config.logit_weight,
        hidden=config.hidden_weight,
        attention=config.attention_weight,
        labels=config.label_weight,
    )
    lesson = lessons.Lesson(
        problem=splits.problem,
        pad_id=tokenizer.pad_token_id,
        input_ids=rows,
        targets=targets,
        selection=selection,
        tutor=lessons.Tutor(teacher, layer_map, weights, config.temperature),
        reference=evaluation.logits(teacher, selection.input_ids, pad_id=tokenizer.pad_token_id),
    )
    return fitting.fit(title, student, tokenizer, lesson, train=train, config=config, seed=seed)

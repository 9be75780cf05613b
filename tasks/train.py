"""train: fine-tunes the teacher, or measures what a way to do so is worth."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from tasks import fitting
from tasks.contracts.hyperparameters import ComputeConfig, OptimizerConfig
from tasks.contracts.values import Scorecard, Splits, StageOutput
from tasks.engine import publish, store
from tasks.engine.keys import Outside
from tasks.engine.stage import stage
from tasks.ml.models import locators

if TYPE_CHECKING:
    from torch import nn

    from tasks.ml.data.datasets import Split
    from tasks.ml.jobs.lessons import Lesson


class TrainingConfig(OptimizerConfig):
    """How the teacher is fine-tuned."""

    epochs: float = Field(3, gt=0, le=1000, title="Epochs")
    """Passes over the training rows."""
    weight_decay: float = Field(0.01, ge=0, le=10, title="Weight decay")
    """Decoupled weight decay of matrices."""
    clip_norm: float = Field(1.0, gt=0, title="Gradient clipping")
    """Largest global gradient norm."""
    layer_decay: float = Field(1.0, gt=0, le=1, title="Layer decay")
    """Factor on the learning rate per layer below the head."""
    lora_rank: int = Field(0, ge=0, le=4096, title="LoRA rank")
    """Trains low-rank updates of the linear layers, merged at the end; needs the extra 'training'. 0: trains the layers
    themselves."""
    dropout: float = Field(0.1, ge=0, lt=1, title="Dropout")
    """Probability in hidden layers, attention and head."""
    label_smoothing: float = Field(0.0, ge=0, lt=1, title="Label smoothing")
    """Probability mass spread over all labels."""
    evaluations_per_epoch: int = Field(1, ge=1, le=100, title="Evaluations per epoch")
    """Looks at the selection split."""
    patience: int = Field(3, ge=1, le=1000, title="Patience")
    """Evaluations without improvement before stopping early."""


def _base_digest(base_model: str) -> str:
    return locators.directory_digest(locators.locate(base_model))


BaseName = Annotated[str, Outside(_base_digest)]


class _Base(NamedTuple):
    """A base model that is to learn a problem, and what it learns from."""

    model: nn.Module
    tokenizer: Any
    lesson: Lesson
    train: Split


def _open(base_model: str, splits: Splits, config: TrainingConfig, *, seed: int) -> _Base:
    """Loads the base model with a new head, on the device that will train it, and the rows."""
    from tasks.ml.data import datasets
    from tasks.ml.jobs import lessons
    from tasks.ml.models import tokenization
    from tasks.ml.problem import problem_of
    from tasks.ml.training import trainer

    data = store.path(splits.digest)
    directory = locators.locate(base_model)
    trainer.seed_everything(seed)
    about = datasets.info(data)
    tokenizer = tokenization.load(directory, max_length=about.max_length)
    model = problem_of(splits.problem).load_base(directory, about.labels, dropout=config.dropout)
    model.to(trainer.default_device())
    rows = datasets.read(data, "train", tokenizer)
    lesson = lessons.Lesson(
        problem=splits.problem,
        pad_id=tokenizer.pad_token_id,
        input_ids=rows.input_ids,
        targets=rows.targets,
        selection=datasets.read(data, "selection", tokenizer),
        label_smoothing=config.label_smoothing,
    )
    return _Base(model, tokenizer, lesson, rows)


@stage
def train(
    base_model: BaseName, splits: Splits, config: TrainingConfig, *, compute: ComputeConfig, seed: int
) -> StageOutput:
    """Fine-tunes the base model on the training split; the selection split stops it and shows overfitting."""
    base = _open(base_model, splits, config, seed=seed)
    return fitting.fit(
        "train",
        base.model,
        base.tokenizer,
        base.lesson,
        train=base.train,
        config=config,
        compute=compute,
        seed=seed,
    )


@stage
def trial(
    base_model: BaseName, splits: Splits, config: TrainingConfig, *, compute: ComputeConfig, seed: int
) -> StageOutput:
    """Trains to the last epoch, as ``train`` does, to measure what a config is worth; keeps no weights.

    In a process of its own: a resident set never falls, so the peak of one that trained before would be the larger.
    """
    from tasks.ml import machine
    from tasks.ml.problem import problem_of
    from tasks.ml.quality import evaluation

    base, company = _open(base_model, splits, config, seed=seed), machine.Company()
    lesson = base.lesson
    history = fitting.learn(
        "trial",
        base.model,
        lesson,
        config=config,
        compute=compute,
        seed=seed,
        apart=True,
        patience=None,
    )
    others_share = company.share()
    problem = problem_of(lesson.problem)
    logits = evaluation.logits(base.model, lesson.selection.input_ids, pad_id=lesson.pad_id, problem=problem)
    scores = problem.scores(logits, lesson.selection.targets)
    measured = {
        "scores": scores.tolist(),
        "machine": machine.description(),
        "device": history.notes["device"],
        "others_share": others_share,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return StageOutput(
        evidence=publish.evidence({"history.json": history.to_json(), "trial.json": json.dumps(measured)}),
        scorecard=Scorecard(
            split="selection",
            num_examples=len(lesson.selection),
            metric=problem.METRIC,
            quality=float(scores.mean()),
            num_rows=len(base.train),
            train_time_s=history.notes["training_s"],
            samples_per_s=history.evaluations[-1]["epoch"] * len(base.train) / history.notes["training_s"],
        ),
    )

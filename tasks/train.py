"""train: fine-tunes the teacher."""

from __future__ import annotations

from pydantic import Field

from tasks import fitting, store
from tasks.contracts import OptimizerConfig, Splits, StageOutput
from tasks.ml import locators
from tasks.stage import stage


class TrainingConfig(OptimizerConfig):
    """How the teacher is fine-tuned."""

    dropout: float = Field(0.1, ge=0, lt=1, title="Dropout", description="Probability in hidden layers and attention.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, title="Label smoothing", description="Probability mass spread over all labels."
    )
    evaluations_per_epoch: int = Field(
        1, ge=1, le=100, title="Evaluations per epoch", description="Looks at the selection split."
    )
    patience: int = Field(
        3, ge=1, le=1000, title="Patience", description="Evaluations without improvement before stopping early."
    )


def _base_digest(base_model: str, **_: object) -> str:
    return locators.directory_digest(locators.locate(base_model))


@stage(salt=_base_digest)
def train(base_model: str, splits: Splits, config: TrainingConfig, *, seed: int) -> StageOutput:
    """Fine-tunes the base model on the training split; the selection split stops it and shows overfitting."""
    from tasks.ml import datasets, lessons, modeling, problems, trainer

    data = store.path(splits.digest)
    directory = locators.locate(base_model)
    trainer.seed_everything(seed)
    tokenizer = modeling.load_tokenizer(directory)
    model = problems.get(splits.problem).load_base(directory, datasets.info(data).labels, dropout=config.dropout)
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
    return fitting.fit(
        "train",
        model,
        tokenizer,
        lesson,
        train=rows,
        config=config,
        seed=seed,
        evaluations_per_epoch=config.evaluations_per_epoch,
        patience=config.patience,
    )

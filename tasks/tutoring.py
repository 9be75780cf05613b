"""What distill and prune share: a smaller model learns from its teacher on training, augmented and unlabeled text."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tasks import fitting
from tasks.contracts.hyperparameters import OptimizerConfig
from tasks.contracts.values import Bundle, Splits, StageOutput
from tasks.engine import disk, store
from tasks.engine.keys import Outside, code_digest, numerics_versions
from tasks.engine.stage import checkpoint_directory
from tasks.ml import digests

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.ml.data.datasets import Split
    from tasks.ml.distillation.answers import Memory
    from tasks.ml.jobs.lessons import Lesson
    from tasks.ml.models.quantization_spec import Spec


def _model_digest(name: str) -> str:
    from tasks.ml.models import locators

    return locators.directory_digest(locators.find(name, field="augmentation_model"))


class AugmentationKind(StrEnum):
    SPANS = "spans"
    REPLACEMENTS = "replacements"
    BOTH = "both"


class TutoringConfig(OptimizerConfig):
    """What a model learns from its teacher, and on which text."""

    temperature: float = Field(2.0, gt=0, le=100, title="Temperature")
    """Softens the logits of teacher and student."""
    logit_weight: float = Field(1.0, ge=0, title="Logit weight")
    """Weight of the loss between logits."""
    hidden_weight: float = Field(1.0, ge=0, title="Hidden weight")
    """Weight of the loss between hidden states."""
    attention_weight: float = Field(0.0, ge=0, title="Attention weight")
    """Weight of the loss between attention relations."""
    map_weight: float = Field(0.0, ge=0, title="Attention map weight")
    """Weight of the loss between attention scores."""
    label_weight: float = Field(0.0, ge=0, title="Label weight")
    """Weight of the supervised loss."""
    dropout: float = Field(-1.0, ge=-1, lt=1, title="Dropout")
    """Probability in hidden layers, attention and head. Below 0: as the teacher was trained, or the model in the stage
    before."""
    augmentation: float = Field(1.0, ge=0, le=20, title="Augmentation")
    """Texts to make of training texts, per training text."""
    augmentation_kind: AugmentationKind = Field(AugmentationKind.SPANS, title="Kind of augmentation")
    """spans: parts of texts; replacements: texts with some words replaced by similar ones; both: half of each."""
    augmentation_model: Annotated[str, Outside(_model_digest)] = Field("", title="Model for replacements")
    """Masked language model that proposes words: package:PACKAGE/PATH, a local directory, or a hub name. Empty: the
    nearest words in the teacher's embeddings."""
    steps: int = Field(0, ge=0, le=10**9, title="Steps")
    """Optimizer steps in all, instead of epochs: as much work for few texts as for many. 0: epochs."""

    def compared_attention(self) -> list[str]:
        """Fields by which the last layer's attention is learned."""
        weights = {"attention_weight": self.attention_weight, "map_weight": self.map_weight}
        return [name for name, weight in weights.items() if weight]


def more_texts(
    train: Split,
    unlabeled: Split,
    tokenizer: Any,
    teacher: nn.Module,
    *,
    config: TutoringConfig,
    max_length: int,
    seed: int,
) -> list[str]:
    """Makes new texts of the training texts, none of which is among those of the two splits."""
    from tasks.ml.data import augmentation, substitutes
    from tasks.ml.models import families, locators, tokenization

    kinds = {AugmentationKind.SPANS, AugmentationKind.REPLACEMENTS}
    kinds = kinds if config.augmentation_kind is AugmentationKind.BOTH else {config.augmentation_kind}
    per_kind = config.augmentation / len(kinds)
    made: list[str] = []
    if AugmentationKind.SPANS in kinds:
        made += augmentation.sub_spans(train.texts, per_kind, seed=seed)
    if AugmentationKind.REPLACEMENTS in kinds and per_kind:
        if config.augmentation_model:
            directory = locators.find(config.augmentation_model, field="augmentation_model")
            tokenizer = tokenization.load(directory)
            propose = substitutes.predictions(substitutes.load_masked(directory), tokenizer)
            found = augmentation.words(train.texts, tokenizer, max_length=max_length)
        else:
            found = augmentation.words(train.texts, tokenizer, max_length=max_length)
            others = augmentation.words(unlabeled.texts, tokenizer, max_length=max_length)
            about: Any = teacher.config
            table = families.of(about.model_type).token_embedding(teacher)
            propose = substitutes.neighbours(table.weight, [*found, *others])
        made += augmentation.replacements(found, per_kind, propose, seed=seed)
    return augmentation.unseen(made, [*train.texts, *unlabeled.texts])


def memory(teacher: Bundle, *, vocabulary: Sequence[int] | None = None) -> Memory:
    """What this teacher, loaded by this code with these libraries, has said about any text in any stage or run.

    Args:
        vocabulary: token id of the bundle for each id that texts are written in, where its vocabulary was cut.
    """
    from tasks.ml.distillation import answers, teaching
    from tasks.ml.quantization import simulation

    code = [code_digest(module.__name__) for module in (simulation, teaching)]
    return answers.Memory(
        disk.folder("answers") / digests.of_value([teacher.digest, numerics_versions(), code]), vocabulary
    )


def prepare_lesson(
    student: nn.Module,
    teacher: nn.Module,
    tokenizer: Any,
    *,
    splits: Splits,
    config: TutoringConfig,
    seed: int,
    bundle: Bundle,
    vocabulary: Sequence[int] | None = None,
    zeros: Mapping[str, torch.Tensor] | None = None,
    spec: Spec | None = None,
) -> tuple[Lesson, Split]:
    """The lesson of a student, which goes to the device with its teacher, and the labelled rows in it.

    Args:
        tokenizer: encodes for both models.
        bundle: the teacher as it was published, whose labels the student is held against.
        vocabulary: token id of the bundle for each id that texts are written in, where the teacher's vocabulary was
            cut.
        zeros: weights of the student that stay zero, as ``sparsity.zeros`` finds them.
        spec: what the student computes as if it were quantized.
    """
    import numpy as np

    from tasks.ml.data import datasets
    from tasks.ml.distillation import layer_choice, teaching
    from tasks.ml.jobs import lessons
    from tasks.ml.models import dropout, tokenization
    from tasks.ml.problem import problem_of
    from tasks.ml.quality import evaluation
    from tasks.ml.training import trainer

    data = store.path(splits.digest)
    trainer.seed_everything(seed)
    train, unlabeled, selection = (datasets.read(data, name, tokenizer) for name in ("train", "unlabeled", "selection"))
    max_length = datasets.info(data).max_length
    made = more_texts(train, unlabeled, tokenizer, teacher, config=config, max_length=max_length, seed=seed)
    rows = train.input_ids + tokenization.encode(made, tokenizer, max_length=max_length) + unlabeled.input_ids
    targets = np.full(len(rows), problem_of(splits.problem).NO_TARGET, train.targets.dtype)
    targets[: len(train)] = train.targets
    device = trainer.default_device()
    known = memory(bundle, vocabulary=vocabulary)
    student.to(device)
    teacher.to(device)
    if config.dropout >= 0:
        dropout.change(student, config.dropout)
    weights = teaching.Weights(
        logits=config.logit_weight,
        hidden=config.hidden_weight,
        attention=config.attention_weight,
        labels=config.label_weight,
        maps=config.map_weight,
    )
    lesson = lessons.Lesson(
        problem=splits.problem,
        pad_id=tokenizer.pad_token_id,
        input_ids=rows,
        targets=targets,
        selection=selection,
        tutor=lessons.Tutor(teacher, layer_choice.layer_map(student, teacher), weights, config.temperature, known),
        reference=evaluation.answers(store.path(bundle.digest), data, bundle.problem),
        zeros=zeros or {},
        spec=spec,
    )
    return lesson, train


def teach(
    title: str,
    student: nn.Module,
    teacher: nn.Module,
    tokenizer: Any,
    *,
    config: TutoringConfig,
    seed: int,
    evidence: Mapping[str, str] | None = None,
    **about: Any,
) -> StageOutput:
    """Fits the student to the teacher and publishes it.

    Args:
        tokenizer: encodes for both models.
        evidence: files to publish beside the history, by name.
        about: passed on to ``prepare_lesson``.
    """
    lesson, train = prepare_lesson(student, teacher, tokenizer, config=config, seed=seed, **about)
    options: Any = {"config": config, "seed": seed, "steps": config.steps}
    return fitting.fit(title, student, tokenizer, lesson, train=train, evidence=evidence, **options)


def teach_between(
    title: str,
    make: Callable[[], nn.Module],
    teacher: nn.Module,
    tokenizer: Any,
    *,
    config: TutoringConfig,
    seed: int,
    **about: Any,
) -> nn.Module:
    """Makes a student and fits it, in a stage that goes on with it; interrupted later, the stage finds it again.

    Args:
        title: names it among the students of the stage.
        about: passed on to ``prepare_lesson``.
    """
    from tasks.ml.models import locators, modeling
    from tasks.ml.quantization import simulation

    folder, problem = checkpoint_directory() / title, about["splits"].problem
    seal = folder / "model.sha256"
    whole = seal.is_file() and seal.read_bytes() == locators.directory_digest(folder / "model").encode()
    if not whole:
        student = make()
        lesson, _ = prepare_lesson(student, teacher, tokenizer, config=config, seed=seed, **about)
        options: Any = {"config": config, "seed": seed, "steps": config.steps}
        fitting.learn(title, student, lesson, checkpoint=folder / "checkpoints", **options)
        shutil.rmtree(folder / "model", ignore_errors=True)
        (folder / "model").mkdir(parents=True)
        modeling.save_model(student.cpu(), folder / "model")
        disk.write_atomically(seal, locators.directory_digest(folder / "model"))
    return simulation.load(folder / "model", problem)

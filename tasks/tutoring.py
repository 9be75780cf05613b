"""What distill and prune share: a smaller model learns from its teacher on training, augmented and unlabeled text."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from tasks import fitting
from tasks.contracts.base import StageConfig
from tasks.contracts.hyperparameters import ComputeConfig, OptimizerConfig
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
    from tasks.ml.quantization.blocks import Blocks


def _model_digest(name: str) -> str:
    from tasks.ml.models import locators

    return locators.directory_digest(locators.find(name, field="teaching.augmentation.model"))


class AugmentationKind(StrEnum):
    SPANS = "spans"
    REPLACEMENTS = "replacements"
    BOTH = "both"


class AugmentationConfig(StageConfig, title="More texts"):
    """Texts that are made of the training texts, for the teacher to answer."""

    per_text: float = Field(1.0, gt=0, le=20, title="Texts per text")
    """How many are made per training text."""
    kind: AugmentationKind = Field(AugmentationKind.SPANS, title="Kind of augmentation")
    """spans: parts of texts; replacements: texts with some words replaced by similar ones; both: half of each."""
    model: Annotated[str, Outside(_model_digest)] = Field("", title="Model for replacements")
    """Masked language model that proposes words: package:PACKAGE/PATH, a local directory, or a hub name. Empty: the
    nearest words in the teacher's embeddings."""

    @model_validator(mode="after")
    def _is_asked(self) -> Self:
        if self.model and self.kind is AugmentationKind.SPANS:
            raise ValueError(
                "model: proposes words for replacements; set kind to replacements or both, or leave it out"
            )
        return self


class TeachingConfig(StageConfig):
    """What a smaller model learns of its teacher's answers, and on which texts, in every stage that has one learn."""

    temperature: float = Field(2.0, gt=0, le=100, title="Temperature")
    """Softens the logits of teacher and student."""
    label_weight: float = Field(0.0, ge=0, title="Label weight")
    """Weight of the supervised loss; that of the loss between logits is 1."""
    augmentation: AugmentationConfig | None = Field(None, title="Augmentation")
    """Texts made of the training texts, as more texts to answer; none: training and unlabeled texts alone."""


class StudentConfig(OptimizerConfig):
    """What a smaller model learns with."""

    steps: int = Field(1500, ge=0, le=10**9, title="Steps")
    """Optimizer steps: as much work for few texts as for many. 0: nothing is learned."""


def more_texts(
    train: Split,
    unlabeled: Split,
    tokenizer: Any,
    teacher: nn.Module,
    *,
    config: AugmentationConfig,
    max_length: int,
    seed: int,
) -> list[str]:
    """Makes new texts of the training texts, none of which is among those of the two splits."""
    from tasks.ml.data import augmentation, substitutes
    from tasks.ml.models import families, locators, tokenization

    kinds = {AugmentationKind.SPANS, AugmentationKind.REPLACEMENTS}
    kinds = kinds if config.kind is AugmentationKind.BOTH else {config.kind}
    per_kind = config.per_text / len(kinds)
    made: list[str] = []
    if AugmentationKind.SPANS in kinds:
        made += augmentation.sub_spans(train.texts, per_kind, seed=seed)
    if AugmentationKind.REPLACEMENTS in kinds:
        if config.model:
            directory = locators.find(config.model, field="teaching.augmentation.model")
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
        vocabulary: token id of the bundle for each id that texts are written in, where its vocabulary was cut. What it
            says of a text as a whole is the same without the cut; what it says of tokens is of those that it has.
    """
    from tasks.ml.distillation import answers, teaching
    from tasks.ml.problem import problem_of
    from tasks.ml.quantization import simulation

    code = [code_digest(module.__name__) for module in (simulation, teaching)]
    how = digests.of_value([numerics_versions(), code])
    folder = disk.folder("answers") / f"{teacher.digest}-{how[:16]}"
    if vocabulary is not None and problem_of(teacher.problem).PER_TOKEN:
        return answers.Memory(folder.with_name(f"{folder.name}-{digests.of_value(list(vocabulary))[:16]}"))
    return answers.Memory(folder, vocabulary)


def prepare_lesson(
    student: nn.Module,
    teacher: nn.Module,
    tokenizer: Any,
    *,
    splits: Splits,
    teaching: TeachingConfig,
    seed: int,
    bundle: Bundle,
    insides: Mapping[str, float] = MappingProxyType({}),
    vocabulary: Sequence[int] | None = None,
    zeros: Mapping[str, torch.Tensor] | None = None,
    spec: Spec | None = None,
    codes: Mapping[str, Blocks] = MappingProxyType({}),
) -> tuple[Lesson, Split]:
    """The lesson of a student, which goes to the device with its teacher, and the labelled rows in it.

    Args:
        tokenizer: encodes for both models.
        bundle: the teacher as it was published, whose labels the student is held against.
        insides: weights of what is learned beside answers, as ``teaching.Weights`` has them.
        vocabulary: token id of the bundle for each id that texts are written in, where the teacher's vocabulary was
            cut.
        zeros: weights of the student that stay zero, as ``sparsity.zeros`` finds them.
        spec, codes: what the student computes as if it were quantized, as ``fake_quantization.products`` has them.
    """
    import numpy as np

    from tasks.ml.data import datasets
    from tasks.ml.distillation import layer_choice
    from tasks.ml.distillation.teaching import Weights
    from tasks.ml.jobs import lessons
    from tasks.ml.models import tokenization
    from tasks.ml.problem import problem_of
    from tasks.ml.quality import evaluation
    from tasks.ml.training import trainer

    data = store.path(splits.digest)
    trainer.seed_everything(seed)
    train, unlabeled, selection = (datasets.read(data, name, tokenizer) for name in ("train", "unlabeled", "selection"))
    max_length = datasets.info(data).max_length
    made: list[str] = []
    if config := teaching.augmentation:
        made = more_texts(train, unlabeled, tokenizer, teacher, config=config, max_length=max_length, seed=seed)
    rows = train.input_ids + tokenization.encode(made, tokenizer, max_length=max_length) + unlabeled.input_ids
    targets = np.full(len(rows), problem_of(splits.problem).NO_TARGET, train.targets.dtype)
    targets[: len(train)] = train.targets
    device = trainer.default_device()
    known = memory(bundle, vocabulary=vocabulary)
    student.to(device)
    teacher.to(device)
    weights = Weights(labels=teaching.label_weight, **insides)
    lesson = lessons.Lesson(
        problem=splits.problem,
        pad_id=tokenizer.pad_token_id,
        input_ids=rows,
        targets=targets,
        selection=selection,
        tutor=lessons.Tutor(teacher, layer_choice.layer_map(student, teacher), weights, teaching.temperature, known),
        reference=evaluation.reference(store.path(bundle.digest), data, bundle.problem, tokenizer),
        zeros=zeros or {},
        spec=spec,
        codes=codes,
    )
    return lesson, train


def teach(
    title: str,
    student: nn.Module,
    teacher: nn.Module,
    tokenizer: Any,
    *,
    config: StudentConfig,
    compute: ComputeConfig,
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
    lesson, train = prepare_lesson(student, teacher, tokenizer, seed=seed, **about)
    options: Any = {"config": config, "compute": compute, "seed": seed}
    return fitting.fit(title, student, tokenizer, lesson, train=train, evidence=evidence, **options)


def teach_between(
    title: str,
    make: Callable[[], nn.Module],
    teacher: nn.Module,
    tokenizer: Any,
    *,
    config: StudentConfig,
    compute: ComputeConfig,
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
        lesson, _ = prepare_lesson(student, teacher, tokenizer, seed=seed, **about)
        options: Any = {"config": config, "compute": compute, "seed": seed}
        fitting.learn(title, student, lesson, checkpoint=folder / "checkpoints", **options)
        shutil.rmtree(folder / "model", ignore_errors=True)
        (folder / "model").mkdir(parents=True)
        modeling.save_model(student.cpu(), folder / "model")
        disk.write_atomically(seal, locators.directory_digest(folder / "model"))
    return simulation.load(folder / "model", problem)

"""distill: a student cut from the teacher's layers and taught by it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from tasks import tutoring
from tasks.contracts.hyperparameters import ComputeConfig
from tasks.contracts.values import Bundle, Splits, StageOutput
from tasks.engine import store
from tasks.engine.stage import stage

CALIBRATION_BATCH = 16


class LayerChoice(StrEnum):
    SPREAD = "spread"
    INFLUENCE = "influence"


class DistillationConfig(tutoring.StudentConfig):
    """How many layers the student keeps, and what it learns from."""

    layers: int = Field(3, ge=1, le=1000, title="Student layers")
    """Transformer layers, spread evenly over the teacher's."""
    layer_choice: LayerChoice = Field(LayerChoice.SPREAD, title="Which layers")
    """spread: evenly over the teacher's, the last included; influence: those that turn the hidden state most on the
    calibration split."""
    keep_hidden: float = Field(1.0, gt=0, le=1, title="Hidden width kept")
    """Fraction of the teacher's hidden size, rounded to whole head sizes; a learned projection compares hidden states
    in training."""
    embedding_rank: int = Field(0, ge=0, le=2**16, title="Embedding rank")
    """Columns of the student's token table, which a projection then makes as wide as the hidden state; 0: a table of
    that width."""
    learning_rate: float = Field(3e-4, gt=0, le=1, title="Learning rate")
    """Peak learning rate."""
    hidden_weight: float = Field(1.0, ge=0, title="Hidden weight")
    """Weight of the loss between hidden states, beside that of logits, which is 1."""
    attention_weight: float = Field(0.0, ge=0, title="Attention weight")
    """Weight of the loss between attention relations."""
    map_weight: float = Field(0.0, ge=0, title="Attention map weight")
    """Weight of the loss between attention scores."""


@stage
def distill(
    source: Bundle,
    splits: Splits,
    config: DistillationConfig,
    *,
    teaching: tutoring.TeachingConfig,
    compute: ComputeConfig,
    seed: int,
) -> StageOutput:
    """Cuts a student out of the teacher and teaches it with logits, hidden states and attention relations.

    The losses and their papers are in ``tasks.ml.distillation.losses``.
    """
    from tasks.ml.data import datasets
    from tasks.ml.distillation import layer_choice
    from tasks.ml.models import factorization, modeling, tokenization
    from tasks.ml.problem import problem_of
    from tasks.ml.pruning import surgery, width
    from tasks.ml.quality import learning
    from tasks.ml.quantization import simulation

    teacher = simulation.load(store.path(source.digest), source.problem)
    tokenizer = tokenization.load(store.path(source.digest))
    calibration = datasets.read(store.path(splits.digest), "calibration", tokenizer)
    batches = list(learning.batches(calibration, CALIBRATION_BATCH, pad_id=tokenizer.pad_token_id))
    total, only = len(modeling.shapes(teacher)), problem_of(source.problem).FIRST_TOKEN_ONLY
    if config.layer_choice is LayerChoice.SPREAD:
        kept = taught = surgery.spread(total, config.layers)
    else:
        scores = layer_choice.influence(teacher, batches, first_token_only=only)
        kept = layer_choice.most_influential(scores, config.layers)
        taught = layer_choice.taught(kept, total)
    student = surgery.keep_layers(teacher, kept)
    modeling.set_layer_map(student, taught)
    if config.keep_hidden < 1:
        head_size = teacher.config.hidden_size // teacher.config.num_attention_heads  # type: ignore[union-attr, operator]
        widths = width.importance(student, batches, first_token_only=only)
        student = width.keep_hidden(student, width.top(widths, keep=config.keep_hidden, head_size=head_size))  # type: ignore[arg-type]
    if config.embedding_rank:
        texts = [datasets.read(store.path(splits.digest), name, tokenizer) for name in ("train", "unlabeled")]
        rows = [row for split in texts for row in split.input_ids]
        student = factorization.factorize(student, config.embedding_rank, rows=rows)
    return tutoring.teach(
        "distill",
        student,
        teacher,
        tokenizer,
        splits=splits,
        config=config,
        teaching=teaching,
        compute=compute,
        seed=seed,
        bundle=source,
        insides={
            "hidden": config.hidden_weight,
            "attention": config.attention_weight,
            "maps": config.map_weight,
        },
    )

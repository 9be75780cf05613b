"""distill: a student cut from the teacher's layers and taught by it."""

from __future__ import annotations

from pydantic import Field

from tasks import store, tutoring
from tasks.contracts import Bundle, Splits, StageOutput
from tasks.stage import stage


class DistillationConfig(tutoring.TutoringConfig):
    """How many layers the student keeps, and what it learns from."""

    epochs: float = Field(4, gt=0, le=1000, title="Epochs", description="Passes over the distillation texts.")
    learning_rate: float = Field(3e-4, gt=0, le=1, title="Learning rate", description="Peak learning rate of AdamW.")
    attention_weight: float = Field(
        0.5, ge=0, title="Attention weight", description="Weight of the loss between attention relations."
    )
    layers: int = Field(
        3, ge=1, le=1000, title="Student layers", description="Transformer layers, spread evenly over the teacher's."
    )


@stage
def distill(source: Bundle, splits: Splits, config: DistillationConfig, *, seed: int) -> StageOutput:
    """Cuts a student out of the teacher and teaches it with logits, hidden states and attention relations.

    The losses and their papers are in ``tasks.ml.losses``.
    """
    from tasks.ml import modeling, surgery

    teacher = modeling.load(store.path(source.digest), source.problem)
    tokenizer = modeling.load_tokenizer(store.path(source.digest))
    layer_map = surgery.spread(len(modeling.shapes(teacher)), config.layers)
    student = surgery.keep_layers(teacher, layer_map)
    return tutoring.teach(
        "distill", student, teacher, tokenizer, splits=splits, layer_map=layer_map, config=config, seed=seed
    )

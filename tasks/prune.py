"""prune: takes out the heads, FFN channels and tokens that are missed least, then lets the teacher heal the rest."""

from __future__ import annotations

from pydantic import Field

from tasks import store, tutoring
from tasks.contracts import Bundle, Splits, StageOutput
from tasks.stage import stage

CALIBRATION_BATCH = 16


class PruningConfig(tutoring.TutoringConfig):
    """How much width to keep, and how long to recover."""

    epochs: float = Field(2, gt=0, le=1000, title="Recovery epochs", description="Passes over the texts after the cut.")
    learning_rate: float = Field(2e-4, gt=0, le=1, title="Learning rate", description="Peak learning rate of recovery.")
    keep_ffn: float = Field(
        0.5, gt=0, le=1, title="FFN width kept", description="Fraction of FFN channels kept per layer."
    )
    keep_heads: float = Field(
        0.75, gt=0, le=1, title="Heads kept", description="Fraction of attention heads kept per layer."
    )
    keep_vocabulary: float = Field(
        1.0,
        gt=0,
        le=1,
        title="Vocabulary kept",
        description="Fraction of tokens kept, the most frequent; rarer words fall back to sub-words.",
    )


@stage
def prune(source: Bundle, splits: Splits, config: PruningConfig, *, teacher: Bundle, seed: int) -> StageOutput:
    """Removes what the calibration split misses least, then lets the teacher heal it.

    The teacher answers with its own vocabulary for texts that both encode alike, which all training texts are.
    """
    from tasks.ml import datasets, importance, learning, modeling, problems, surgery

    student = modeling.load(store.path(source.digest), source.problem)
    tokenizer = modeling.load_tokenizer(store.path(source.digest))
    master = modeling.load(store.path(teacher.digest), teacher.problem)
    data = store.path(splits.digest)
    calibration = datasets.read(data, "calibration", tokenizer)
    scores = importance.taylor(
        student,
        learning.batches(calibration, CALIBRATION_BATCH, pad_id=tokenizer.pad_token_id),
        lambda logits, batch: problems.get(source.problem).loss(logits, batch["targets"]),
    )
    smaller = surgery.keep_top(student, scores, keep_heads=config.keep_heads, keep_ffn=config.keep_ffn)
    if config.keep_vocabulary < 1:
        rows = datasets.read(data, "train", tokenizer).input_ids + datasets.read(data, "unlabeled", tokenizer).input_ids
        tokens = surgery.choose_tokens(tokenizer, rows, keep=config.keep_vocabulary)
        smaller, tokenizer = surgery.keep_tokens(smaller, tokenizer, tokens)
        # The teacher must hear the same tokens for its hidden states to be comparable.
        master, _ = surgery.keep_tokens(master, modeling.load_tokenizer(store.path(teacher.digest)), tokens)
    layer_map = surgery.spread(len(modeling.shapes(master)), len(modeling.shapes(smaller)))
    return tutoring.teach(
        "prune", smaller, master, tokenizer, splits=splits, layer_map=layer_map, config=config, seed=seed
    )

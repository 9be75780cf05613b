"""What train, distill and prune share: fit a model, measure it on the selection split, publish it with its history."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tasks import progress, publish, tracking
from tasks.contracts import OptimizerConfig, Scorecard, StageOutput
from tasks.stage import checkpoint_directory

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from tasks.ml.datasets import Split
    from tasks.ml.trainer import StepLoss

logger = logging.getLogger("featherweight")


def fit(
    title: str,
    model: nn.Module,
    tokenizer: Any,
    step_loss: StepLoss,
    *,
    lengths: list[int],
    problem_name: str,
    train: Split,
    selection: Split,
    config: OptimizerConfig,
    seed: int,
    reference: np.ndarray | None = None,
    **options: Any,
) -> StageOutput:
    """Fits and publishes a model; reports its quality on the selection split and the gap to the training split.

    Args:
        lengths: tokens of each row that ``step_loss`` can be asked for.
        train, selection: labelled rows, encoded with ``tokenizer``.
        reference: the teacher's logits on the selection split (N, C).
        options: passed on to ``trainer.fit``.
    """
    from tasks.ml import learning, modeling, problems, trainable, trainer

    problem = problems.get(problem_name)
    pad_id = tokenizer.pad_token_id

    def evaluate() -> dict[str, float]:
        return learning.quality(model, problem, selection, pad_id=pad_id, reference=reference)

    with (
        tracking.current().system_metrics(),
        progress.training(title) as observer,
        trainable.prepared(model, optimizer=config.optimizer, **config.for_model()),
    ):
        history = trainer.fit(
            model,
            step_loss,
            lengths=lengths,
            evaluate=evaluate,
            seed=seed,
            observer=observer,
            checkpoint=checkpoint_directory(),
            **config.for_trainer(),
            **options,
        )
    logger.info("%s: precision %s", title, history.notes["precision"])
    tracking.current().tags({f"featherweight.{key}": str(value) for key, value in history.notes.items()})
    quality = evaluate()
    seen = train.head(len(selection))
    train_accuracy = learning.quality(model, problem, seen, pad_id=pad_id)["accuracy"]
    bundle, size_mb = publish.torch_bundle(model.cpu(), tokenizer, problem_name)
    speeds = [point["samples_per_s"] for point in history.points]
    return StageOutput(
        bundle=bundle,
        evidence=publish.evidence({"history.json": history.to_json()}),
        scorecard=Scorecard(
            split="selection",
            num_examples=len(selection),
            accuracy=quality["accuracy"],
            loss=quality["loss"],
            train_accuracy=train_accuracy,
            overfit_gap=train_accuracy - quality["accuracy"],
            agreement_with_teacher=quality.get("agreement"),
            num_parameters=modeling.num_parameters(model),
            size_mb=size_mb,
            train_time_s=history.notes["training_s"],
            samples_per_s=sum(speeds) / len(speeds) if speeds else None,
        ),
    )

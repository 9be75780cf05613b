"""Quantization without training: all that is decided on the calibration split, one step upon the other."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from tasks.ml.data.datasets import Split
from tasks.ml.models.quantization_spec import INT8_STATIC, Spec
from tasks.ml.problem import Problem
from tasks.ml.quality import learning
from tasks.ml.quantization import calibration, gptq, sensitivity, smoothing

BATCH_SIZE = 16


def decide(
    model: nn.Module,
    spec: Spec,
    problem: Problem,
    rows: Split,
    *,
    pad_id: int,
    alpha: float = 0.0,
    method: str = "min-max",
    max_damage: float = 0.0,
    use_gptq: bool = False,
) -> tuple[Spec, sensitivity.Scan | None]:
    """Smooths, takes ranges, protects what is sensitive and rounds: the weights change in place.

    Args:
        rows: the calibration split.
        alpha: of ``smoothing``; 0: none.
        method: of ``calibration``, for static layers.
        max_damage: of ``sensitivity``; 0: every layer is quantized as planned.
        use_gptq: whether weights are rounded by ``gptq``; else to nearest, when they are lowered.

    Returns:
        The finished spec, and what the sensitivity scan measured if there was one.
    """

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        return learning.batches(rows, BATCH_SIZE, pad_id=pad_id)

    scan, only = None, problem.FIRST_TOKEN_ONLY
    if alpha:
        spec = smoothing.smooth(model, spec, batches, alpha=alpha, first_token_only=only)
    if any(how.scheme == INT8_STATIC for how in spec.linears.values()):
        spec = calibration.calibrate(model, spec, batches, method=method, first_token_only=only)
    if max_damage:
        spec, scan = sensitivity.protect(model, spec, problem, rows.input_ids, pad_id=pad_id, max_damage=max_damage)
    if use_gptq:
        gptq.apply(model, spec, batches, first_token_only=only)
    return spec, scan

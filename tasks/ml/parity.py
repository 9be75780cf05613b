"""Whether the runtime says what the simulated model says. N = rows, C = classes, B = rows of a batch, S = tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from tasks.contracts import FeatherweightError
from tasks.ml import evaluation, runtime
from tasks.ml.problems import Problem

BATCH_SIZE = 32
"""Both sides see the same batches: scales of activations are taken over whole batches, padding included."""


class ParityError(FeatherweightError):
    """The exported model does not do what its simulation does."""


def compare(
    reference: nn.Module,
    session: ort.InferenceSession,
    problem: Problem,
    rows: Sequence[Sequence[int]],
    *,
    pad_id: int,
    max_length: int,
) -> dict[str, Any]:
    """Compares logits on every row of a split, and at shapes that were not exported.

    Without quantization the two differ by float rounding (1e-6). With it, most rows still do when asked one at a
    time; but a value on the edge between two codes can tip over, and its row, or with a scale that is shared any row
    of the batch, is then off by a fraction of what quantization itself costs. In batches that is common: for a
    3-layer MiniLM the median is 4e-7 at batch 1 and 8e-4 at batch 32, beside 3e-2 between quantized and not.
    So it is labels that are held against a limit.

    Returns:
        ``n``, ``label_flips``, ``max_abs_error``, ``mean_abs_error``, ``median_abs_error``, ``non_finite``, ``shapes``.
    """
    expected = [evaluation.logits(reference, rows, pad_id=pad_id, batch_size=BATCH_SIZE)]
    actual = [runtime.logits(session, rows, pad_id=pad_id, batch_size=BATCH_SIZE)]
    flips = int((problem.predictions(expected[0]) != problem.predictions(actual[0])).sum())
    shapes = other_shapes(rows, max_length)
    for batch, length in shapes:
        feed = runtime.feed([row[:length] for row in rows[:batch]], pad_id=pad_id, length=length)
        actual.append(session.run(None, feed)[0])
        with torch.inference_mode():
            inputs = {name: torch.from_numpy(array) for name, array in feed.items()}
            expected.append(reference(**inputs).logits.numpy())
    errors = np.abs(np.concatenate(expected) - np.concatenate(actual)).max(axis=-1)
    finite = np.isfinite(np.concatenate(actual)).all(axis=-1)
    return {
        "n": len(rows),
        "label_flips": flips,
        "max_abs_error": float(errors.max()),
        "mean_abs_error": float(errors.mean()),
        "median_abs_error": float(np.median(errors)),
        "non_finite": int((~finite).sum()),
        "shapes": [list(shape) for shape in shapes],
    }


def other_shapes(rows: Sequence[Sequence[int]], max_length: int) -> list[tuple[int, int]]:
    """Batch × length: the smallest, a prime one, a padded one and the largest that is served."""
    shapes = [(1, 2), (3, 7), (5, max_length // 2 + 1), (8, max_length)]
    return [(min(batch, len(rows)), min(max(length, 2), max_length)) for batch, length in shapes]


def require(parity: dict[str, Any], *, max_flips: float) -> None:
    """Raises ``ParityError`` where the runtime gave what is no number, or too many other labels."""
    if parity["non_finite"]:
        raise ParityError(f"validation: the runtime gave NaN or infinity as logits of {parity['non_finite']} rows")
    share = parity["label_flips"] / parity["n"]
    if share > max_flips:
        raise ParityError(
            f"validation: {parity['label_flips']} of {parity['n']} labels ({share:.2%}) differ between the runtime and "
            f"the simulated model, and max_flips allows {max_flips:.2%}; the largest logit difference is "
            f"{parity['max_abs_error']:.3g}"
        )

"""Whether the runtime says what the simulated model says. N = rows, C = classes, B = rows of a batch, S = tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.graph import export
from tasks.ml.models import first_token, modeling
from tasks.ml.problem import problem_of
from tasks.ml.quality import evaluation
from tasks.ml.quantization import simulation
from tasks.ml.runtime import sessions

BATCH_SIZE = 32
"""Both sides see the same batches: scales of activations are taken over whole batches, padding included."""
ROUNDING = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}
"""Largest difference of a logit, as a share of the largest logit, that rounding of floats explains."""


COMPANY = 4.0
"""How many times further off a row may be in a batch whose scales it shares: one code that tips over moves them all."""


class ParityError(FeatherweightError):
    """The exported model does not do what its simulation does."""


def simulated(directory: Path, problem: str) -> nn.Module:
    """Loads a quantized bundle as the model that its export must equal."""
    model = simulation.load(directory, problem)
    if problem_of(problem).FIRST_TOKEN_ONLY:
        first_token.narrow(model)
    return model


def compare(
    source: Path,
    session: ort.InferenceSession,
    problem_name: str,
    rows: Sequence[Sequence[int]],
    *,
    pad_id: int,
    max_length: int,
) -> dict[str, Any]:
    """Compares logits on every row of a split, and at shapes and positions that the split does not have.

    Without quantization the two differ by float rounding (1e-6). With it, most rows still do when asked one at a
    time; but a value on the edge between two codes can tip over, and its row, or with a scale that is shared any row
    of the batch, is then off by a fraction of what quantization itself costs. In batches that is common: for a
    3-layer MiniLM the median is 4e-7 at batch 1 and 8e-4 at batch 32, beside 3e-2 between quantized and not.
    So what quantization costs, measured on the same rows, is the limit of errors of rows that are asked one at a time,
    as those are that are further off in their batch; where a batch shares a scale, a row in it may be ``COMPANY`` times
    as far off.

    Args:
        source: the torch bundle that the graph was exported from, whose simulation is the reference.
        rows: token ids of the split.

    Returns:
        ``n`` rows of the split, of which ``label_flips`` differ; the same of the rows at other ``shapes``, as
        ``shape_rows`` and ``shape_flips``; of all rows ``max_abs_error``, ``mean_abs_error``, ``median_abs_error``,
        ``non_finite``, and ``allowed_abs_error``; ``alone_abs_error`` of those rows beyond it, asked one at a time.
    """
    problem, floats = problem_of(problem_name), export.read_spec(source).floats
    reference = simulated(source, problem_name)
    shapes = other_shapes(max_length)
    others = [stretched(rows, batch, length) for batch, length in shapes]
    expected, exact = (
        np.concatenate(
            [evaluation.logits(model, some, pad_id=pad_id, batch_size=BATCH_SIZE) for some in (rows, *others)]
        )
        for model in (reference, modeling.load(source, problem_name))
    )
    actual = np.concatenate(
        [sessions.logits(session, some, pad_id=pad_id, batch_size=BATCH_SIZE) for some in (rows, *others)]
    )
    errors = np.abs(expected - actual).max(axis=-1)
    flips = problem.same(expected, actual) < 1
    allowed = float(max(np.abs(expected - exact).max(), ROUNDING[floats] * np.abs(exact).max()))
    everyone = list(itertools.chain(rows, *others))
    beyond = [[everyone[index]] for index in np.flatnonzero(errors > allowed)]
    alone = [
        np.abs(evaluation.logits(reference, one, pad_id=pad_id) - sessions.logits(session, one, pad_id=pad_id)).max()
        for one in beyond
    ]
    return {
        "n": len(rows),
        "label_flips": int(flips[: len(rows)].sum()),
        "shape_rows": len(errors) - len(rows),
        "shape_flips": int(flips[len(rows) :].sum()),
        "max_abs_error": float(errors.max()),
        "mean_abs_error": float(errors.mean()),
        "median_abs_error": float(np.median(errors)),
        "allowed_abs_error": allowed,
        "alone_abs_error": float(max(alone, default=0.0)),
        "non_finite": int((~np.isfinite(errors)).sum()),
        "shapes": [list(shape) for shape in shapes],
    }


def other_shapes(max_length: int) -> list[tuple[int, int]]:
    """Batch × length: one token, the smallest text, a prime one, a padded one and the largest that is served."""
    shapes = [(1, 1), (1, 2), (3, 7), (5, max_length // 2 + 1), (8, max_length)]
    return [(batch, min(length, max_length)) for batch, length in shapes]


def stretched(rows: Sequence[Sequence[int]], batch: int, length: int) -> list[list[int]]:
    """Rows of real tokens for a batch: the first of full length, each other a little shorter, so that it is padded.

    What a row lacks comes from the rows after it, so that every position is read, also beyond the split's lengths.
    """
    lengths = [max(1, length - number * length // (2 * batch)) for number in range(batch)]
    made = []
    for number, wanted in enumerate(lengths):
        tokens = itertools.chain.from_iterable(itertools.islice(itertools.cycle(rows), number, None))
        made.append(list(itertools.islice(tokens, wanted)))
    return made


def require(parity: dict[str, Any], *, max_flips: float) -> None:
    """Raises ``ParityError`` where the runtime gave no numbers, too many other answers, or too large an error."""
    if parity["non_finite"]:
        count = parity["non_finite"]
        raise ParityError(f"validation: runtime or simulated model gave NaN or infinity as logits of {count} rows")
    n, flips = parity["n"] + parity["shape_rows"], parity["label_flips"] + parity["shape_flips"]
    if flips / n > max_flips:
        raise ParityError(
            f"validation: {flips} of {n} answers ({flips / n:.2%}) differ between the runtime and "
            f"the simulated model, and max_flips allows {max_flips:.2%}; the largest logit difference is "
            f"{parity['max_abs_error']:.3g}"
        )
    allowed = parity["allowed_abs_error"]
    if max(parity["alone_abs_error"], parity["max_abs_error"] / COMPANY) > allowed:
        raise ParityError(
            f"validation: a logit differs by {parity['max_abs_error']:.3g} between the runtime and the simulated "
            f"model, more than quantization itself changed any ({allowed:.3g}), on the "
            f"{parity['n']} rows of the split or at the shapes {parity['shapes']}; the graph is not the model"
        )

"""Running a PyTorch model over a split. N = rows, C = classes."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tasks.ml.data import batching, datasets
from tasks.ml.models import modeling, tokenization
from tasks.ml.models.quantization_spec import SPEC_FILE
from tasks.ml.parallel import world
from tasks.ml.problem import Problem, problem_of

ROWS = 64
"""Of a batch."""

_most: ContextVar[int] = ContextVar("featherweight_most_evaluated", default=ROWS)


@contextlib.contextmanager
def at_most(rows: int) -> Iterator[None]:
    """While it is open, no batch has more rows than that."""
    token = _most.set(rows)
    try:
        yield
    finally:
        _most.reset(token)


@torch.inference_mode()
def logits(
    model: nn.Module,
    input_ids: Sequence[Sequence[int]],
    *,
    pad_id: int,
    problem: Problem | None = None,
    batch_size: int = ROWS,
) -> np.ndarray:
    """Returns what a problem keeps of the fp32 logits of a model in evaluation mode, in row order: (N, …); processes
    share the work.

    Args:
        problem: ``None`` keeps logits (N, C) as they are.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    lengths = [len(row) for row in input_ids]
    parts: list[tuple[list[int], torch.Tensor]] = []
    batches = batching.by_length(lengths, min(batch_size, _most.get(), most_rows(problem, lengths)))
    mine = world.share_of_rows(batches)
    # All must compute as often as any: processes that hold parts of a model wait for each other.
    idle = len(world.largest_share_of_rows(batches)) - len(mine)
    for rows in mine + [[0]] * idle:
        ids, mask = batching.collate([input_ids[row] for row in rows], pad_id=pad_id, device=device)
        output = model(input_ids=ids, attention_mask=mask).logits.float()
        if problem:
            counted = batching.counted([input_ids[row] for row in rows], mask)
            output = torch.from_numpy(problem.kept(*(part.cpu().numpy() for part in (output, ids, counted)))).to(device)
        parts.append((rows, output))
    model.train(was_training)
    # The longest row may be another process's, and all must add up the same shape.
    widest = _widest(world.everybody([tuple(part.shape[1:]) for _, part in parts]))
    result = torch.zeros((len(input_ids), *widest), device=device)
    for rows, values in parts[: len(mine)]:
        result[rows] = _widened(values, result.shape[1:])
    return world.total_of_rows(result).cpu().numpy()


def most_rows(problem: Problem | None, lengths: Sequence[int]) -> int:
    """Rows of these lengths whose logits are computed at once, where nothing learns."""
    most = problem.TOKENS_AT_ONCE if problem else 0
    return max(1, most // max(lengths)) if most else len(lengths)


def _widest(shapes: Iterable[Sequence[int]]) -> tuple[int, ...]:
    return tuple(map(max, zip(*shapes, strict=True)))


def _widened(values: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Values (B, S, …) filled up with NaN; whose shape it is already stay as they are."""
    missing = shape[0] - values.shape[1]
    return F.pad(values, (*[0, 0] * (values.dim() - 2), 0, missing), value=math.nan) if missing else values


@functools.lru_cache(maxsize=8)
def answers(bundle: Path, data: Path, problem: str) -> np.ndarray:
    """Returns what is kept of the logits (N, …) of a torch bundle on the selection split, of texts as its own tokenizer
    encodes them.

    Both are stored under the digest of their content, so that all variations of a line ask their teacher once.

    Raises:
        ValueError: the bundle is quantized.
    """
    if (bundle / SPEC_FILE).is_file():
        raise ValueError(f"{bundle} is quantized: its weights alone do not answer as it does")
    tokenizer = tokenization.load(bundle)
    rows = datasets.read(data, "selection", tokenizer).input_ids
    found = logits(modeling.load(bundle, problem), rows, pad_id=tokenizer.pad_token_id, problem=problem_of(problem))
    found.flags.writeable = False
    return found


def reference(bundle: Path, data: Path, problem: str, tokenizer: Any) -> np.ndarray:
    """``answers`` of a bundle, for a model that reads by another tokenizer to be held against."""
    found, own = answers(bundle, data, problem), tokenization.load(bundle)
    if tokenization.digest(own) == tokenization.digest(tokenizer):
        return found
    rows, others = (datasets.read(data, "selection", one).input_ids for one in (own, tokenizer))
    return problem_of(problem).retold(found, rows, others, tokenization.ids_in(own, tokenizer))

"""Running a PyTorch model over a split. N = rows, C = classes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tasks.ml.data import batching, datasets
from tasks.ml.models import modeling, tokenization
from tasks.ml.models.quantization_spec import SPEC_FILE
from tasks.ml.parallel import world

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
def logits(model: nn.Module, input_ids: Sequence[Sequence[int]], *, pad_id: int, batch_size: int = ROWS) -> np.ndarray:
    """Returns the fp32 logits (N, C) of a model in evaluation mode, in row order; processes share the work."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    lengths = [len(row) for row in input_ids]
    parts: list[tuple[list[int], torch.Tensor]] = []
    batches = batching.by_length(lengths, min(batch_size, _most.get()))
    mine = world.share_of_rows(batches)
    # All must compute as often as any: processes that hold parts of a model wait for each other.
    idle = len(world.largest_share_of_rows(batches)) - len(mine)
    for rows in mine + [[0]] * idle:
        ids, mask = batching.collate([input_ids[row] for row in rows], pad_id=pad_id, device=device)
        output = model(input_ids=ids, attention_mask=mask).logits
        parts.append((rows, output.float()))
    model.train(was_training)
    result = torch.zeros((len(input_ids), parts[0][1].shape[1]), device=device)
    for rows, values in parts[: len(mine)]:
        result[rows] = values
    return world.total_of_rows(result).cpu().numpy()


@functools.lru_cache(maxsize=8)
def answers(bundle: Path, data: Path, problem: str) -> np.ndarray:
    """Returns the logits (N, C) of a torch bundle on the selection split, of texts as its own tokenizer encodes them.

    Both are stored under the digest of their content, so that all variations of a line ask their teacher once.

    Raises:
        ValueError: the bundle is quantized.
    """
    if (bundle / SPEC_FILE).is_file():
        raise ValueError(f"{bundle} is quantized: its weights alone do not answer as it does")
    tokenizer = tokenization.load(bundle)
    rows = datasets.read(data, "selection", tokenizer).input_ids
    found = logits(modeling.load(bundle, problem), rows, pad_id=tokenizer.pad_token_id)
    found.flags.writeable = False
    return found

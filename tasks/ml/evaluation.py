"""Running a PyTorch model over a split. N = rows, C = classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from tasks.ml import batching, world


@torch.inference_mode()
def logits(model: nn.Module, input_ids: Sequence[Sequence[int]], *, pad_id: int, batch_size: int = 64) -> np.ndarray:
    """Returns the fp32 logits (N, C) of a model in evaluation mode, in row order; processes share the work."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    lengths = [len(row) for row in input_ids]
    parts: list[tuple[list[int], torch.Tensor]] = []
    batches = batching.by_length(lengths, batch_size)
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

"""Running a PyTorch model over a split. N = rows, C = classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from tasks.ml import batching


@torch.inference_mode()
def logits(model: nn.Module, input_ids: Sequence[Sequence[int]], *, pad_id: int, batch_size: int = 64) -> np.ndarray:
    """Returns the fp32 logits (N, C) of a model in evaluation mode, in row order."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    lengths = [len(row) for row in input_ids]
    parts: list[tuple[list[int], np.ndarray]] = []
    for rows in batching.by_length(lengths, batch_size):
        ids, mask = batching.collate([input_ids[row] for row in rows], pad_id=pad_id)
        output = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        parts.append((rows, output.float().cpu().numpy()))
    model.train(was_training)
    result = np.empty((len(input_ids), parts[0][1].shape[1]), dtype=np.float32)
    for rows, values in parts:
        result[rows] = values
    return result

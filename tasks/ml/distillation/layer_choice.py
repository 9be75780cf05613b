"""Which layers of a teacher a student keeps, and what each of them learns. B = rows, S = tokens, H = hidden size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import architectures, listening, modeling
from tasks.ml.pruning import surgery


def influence(
    model: nn.Module, batches: Iterable[dict[str, torch.Tensor]], *, first_token_only: bool = False
) -> list[float]:
    """Block influence of each layer: one minus the mean cosine between its input and its output.

    ShortGPT, Men et al. 2024 (arXiv:2403.03853, eq. 1): a layer that hardly turns the hidden state is hardly missed.

    Args:
        batches, first_token_only: see ``listening.listen``.
    """

    def turned(before: torch.Tensor, after: torch.Tensor) -> float:
        return float((1 - F.cosine_similarity(before, after, dim=-1)).sum())

    layers = list(architectures.of_model(model).layer_list(model))
    return listening.means(model, batches, layers, turned, first_token_only=first_token_only)


def most_influential(scores: Sequence[float], keep: int) -> list[int]:
    """Indices of the ``keep`` layers of most influence, ascending.

    Raises:
        FeatherweightError: more layers are asked for than there are.
    """
    if keep > len(scores):
        raise FeatherweightError(
            f"distillation: layers is {keep}, but the teacher has {len(scores)}; use {len(scores)} or fewer"
        )
    return sorted(sorted(range(len(scores)), key=lambda index: -scores[index])[:keep])


def taught(kept: Sequence[int], total: int) -> list[int]:
    """Teacher layer whose output each kept one learns: the last before the next kept one, the last of all for the last.

    A kept layer thus learns to do the work of those after it that are gone.
    """
    return [*(index - 1 for index in kept[1:]), total - 1]


def layer_map(student: nn.Module, teacher: nn.Module) -> list[int]:
    """Teacher layer that each layer of a student learns: as it was cut out, else evenly spread."""
    return modeling.layer_map(student) or surgery.spread(len(modeling.shapes(teacher)), len(modeling.shapes(student)))

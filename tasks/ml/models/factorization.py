"""A token table of fewer columns, and a projection to the hidden size after it.

Lan et al. 2020, ALBERT (arXiv:1909.11942, section 3.1). V = vocabulary, E = rank, H = hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import architectures, families


class Factorized(nn.Module):
    """Looks tokens up in a narrow table (V, E) and projects them: ids (…) → (…, H). Stands in for ``nn.Embedding``."""

    def __init__(self, table: nn.Embedding, hidden: int) -> None:
        super().__init__()
        self.table = table
        self.projection = nn.Linear(table.embedding_dim, hidden, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.projection(self.table(ids))

    def dense(self) -> torch.Tensor:
        """The table (V, H) that it stands for."""
        return self.table.weight @ self.projection.weight.T


def rank(model: nn.Module) -> int:
    """Columns of a model's token table, or 0 if it has one of the hidden size."""
    found = architectures.of_model(model).embedding(model)
    return found.table.embedding_dim if isinstance(found, Factorized) else 0


def vectors(model: nn.Module) -> torch.Tensor:
    """What the layers see of each token: (V, H)."""
    found = architectures.of_model(model).embedding(model)
    return found.dense() if isinstance(found, Factorized) else found.weight  # type: ignore[return-value]


def shape(model: nn.Module, rank: int) -> None:
    """Gives a model, in place, a factorized token table whose weights are yet to be loaded."""
    family = architectures.of_model(model)
    whole = family.token_embedding(model)
    table = nn.Embedding(whole.num_embeddings, rank, padding_idx=whole.padding_idx, device="meta")
    table = table.to_empty(device=whole.weight.device)
    family.backbone(model).set_submodule(family.embeddings, Factorized(table, whole.embedding_dim))


@torch.no_grad()
def factorize(model: nn.Module, rank: int, *, rows: Sequence[Sequence[int]]) -> nn.Module:
    """Returns a new model whose token table has so many columns, chosen so that what texts see of it changes least.

    Of all pairs of a table and a projection this has the smallest Σ c_t · |w_t − w'_t|² (Eckart & Young 1936; weighted
    by frequency as in Chen et al. 2018, GroupReduce, arXiv:1806.06950, section 3.2).

    Args:
        rows: token ids of the texts. Each token counts once more than it occurs, so that those which never do count a
            little, rows of the table beyond the tokenizer's tokens among them.

    Raises:
        FeatherweightError: the table has no more columns than that, or it is a decoder's, whose head may be the table.
    """
    if not isinstance(architectures.of_model(model), families.Family):
        raise FeatherweightError(
            "distillation: embedding_rank is for encoders: of a decoder the head is as large as the table, or the "
            "table itself; set it to 0"
        )
    smaller = copy.deepcopy(model)
    weight = vectors(smaller).detach().double()
    if rank >= weight.shape[1]:
        raise FeatherweightError(
            f"distillation: embedding_rank {rank} must be below the hidden size {weight.shape[1]}; 0 leaves the table "
            "whole"
        )
    ids = torch.tensor([token for row in rows for token in row], dtype=torch.int64, device=weight.device)
    counts = torch.bincount(ids, minlength=len(weight)) + 1
    gram = weight.T @ (counts.double().unsqueeze(1) * weight)
    directions = torch.linalg.eigh(gram).eigenvectors[:, -rank:]  # (H, E), orthonormal
    shape(smaller, rank)
    found = architectures.of_model(smaller).embedding(smaller)
    assert isinstance(found, Factorized)
    found.table.weight.copy_(weight @ directions)
    found.projection.weight.copy_(directions)
    return smaller.eval()

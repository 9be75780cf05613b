"""A student narrower than its teacher learns, beside itself, the map from its hidden states to the teacher's.

FitNets' regressor (Romero et al. 2015, arXiv:1412.6550, eq. 3), linear and one for all layers as TinyBERT's W_h (Jiao
et al. 2020, arXiv:1909.10351, eq. 8). h = hidden size of the student, H = of the teacher, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import factorization
from tasks.ml.parallel import world

NAME = "hidden_projection"


def of(student: nn.Module) -> nn.Module:
    """The projection that a student has, (…, h) → (…, H), or what leaves its hidden states as they are."""
    return dict(student.named_children()).get(NAME) or nn.Identity()


@torch.no_grad()
def _start(student: nn.Module, teacher: nn.Module) -> torch.Tensor:
    """The matrix (H, h) that best gives the teacher's token table of the student's, (V, h) → (V, H).

    A student that was cut from its teacher begins with its dimensions in their places, and the others as they go along
    with them.
    """
    narrow, wide = (factorization.vectors(model).float() for model in (student, teacher))
    gram = narrow.T @ narrow
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    return torch.linalg.solve(gram + ridge, narrow.T @ wide).T.contiguous()


@contextmanager
def attached(student: nn.Module, teacher: nn.Module, *, parallelism: str = "replicated") -> Iterator[None]:
    """While it is open, a student narrower than its teacher has the projection and trains it; afterwards it is gone.

    Args:
        parallelism: how several processes share the student.

    Raises:
        FeatherweightError: each process holds a part of the student, or the vocabularies differ.
    """
    narrow, wide = (int(model.config.hidden_size) for model in (student, teacher))  # type: ignore[union-attr, arg-type]
    if narrow == wide:
        yield
        return
    if world.size() > 1 and parallelism != "replicated":
        raise FeatherweightError(
            f"parallelism: {parallelism} does not train a student narrower than its teacher; choose replicated, or "
            "hidden_weight 0"
        )
    matrix = _start(student, teacher)
    linear = nn.Linear(narrow, wide, bias=False, device=matrix.device)
    linear.weight.data.copy_(matrix)
    student.add_module(NAME, linear)
    try:
        yield
    finally:
        delattr(student, NAME)

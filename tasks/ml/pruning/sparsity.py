"""Weights that are zero in matrices that keep their shape: which ones, and that they stay zero while others learn.

Of the linear layers of the backbone, W is (O, I), and G = XᵀX is (I, I), the sum over tokens of what comes in.
O = output channels, I = input channels, B = rows, S = tokens.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import architectures, listening
from tasks.ml.quantization import gptq

BLOCK = 128
"""Columns that SparseGPT chooses from at once (section 3.2; the paper's value)."""


@dataclass(frozen=True)
class Pattern:
    """Where zeros may be: anywhere, or all but n of every m neighbouring input channels."""

    fraction: float
    """Of weights that become zero."""
    group: int = 0
    """m; 0: anywhere."""

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Reads the fraction that becomes zero, as in 0.5, or ``n:m``, as in 2:4, where it is 1 − n / m.

        Raises:
            FeatherweightError: it is neither.
        """
        kept, colon, group = text.partition(":")
        if not colon and re.fullmatch(r"0\.[0-9]+", text):
            return cls(float(text))
        if not (kept.isdecimal() and group.isdecimal() and 0 < int(kept) <= int(group)):
            raise FeatherweightError(
                f"sparsity: pattern: {text!r} is not understood; write the fraction of zeros, such as 0.5, or n:m with "
                "n of m weights kept, such as 2:4"
            )
        return cls(1 - int(kept) / int(group), int(group))


def keep_highest(scores: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Marks what is kept in each row: scores (R, K) → bool (R, K). Among equals those further right are.

    Raises:
        FeatherweightError: K is no multiple of the pattern's group.
    """
    rows, columns = scores.shape
    width = pattern.group or columns
    if columns % width:
        raise FeatherweightError(
            f"sparsity: pattern: a layer has {columns} input channels, which {width} does not divide; take another "
            "m, or a fraction such as 0.5"
        )
    groups = scores.reshape(-1, width)
    removed = groups.argsort(dim=-1, stable=True)[:, : round(pattern.fraction * width)]
    kept = torch.ones_like(groups, dtype=torch.bool).scatter_(1, removed, False)
    return kept.view(rows, columns)


def magnitude(weight: torch.Tensor, gram: torch.Tensor | None, pattern: Pattern) -> torch.Tensor:
    """Sets the smallest weights to zero, of the whole matrix if the pattern allows (Han et al. 2015,
    arXiv:1506.02626)."""
    scores = weight.abs() if pattern.group else weight.abs().view(1, -1)
    return weight * keep_highest(scores, pattern).view_as(weight)


def wanda(weight: torch.Tensor, gram: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Sets those to zero whose |W_ij| · ‖X_j‖₂ is smallest in its row (Sun et al. 2023, arXiv:2306.11695, eq. 1)."""
    return weight * keep_highest(weight.abs() * gram.diagonal().sqrt(), pattern)


def sparsegpt(weight: torch.Tensor, gram: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Sets weights to zero column by column, and lets the columns to the right make up for it.

    Frantar & Alistarh 2023 (arXiv:2301.00774), algorithm 1: with U the upper Cholesky factor of (G + λI)⁻¹, the weights
    of smallest w² / U_cc² go, of a block of columns at once or of each group of the pattern.
    """
    work, columns = weight.double(), weight.shape[1]
    upper = gptq.inverse_factor(gram)
    block = BLOCK // pattern.group * pattern.group if pattern.group else BLOCK
    for start in range(0, columns, max(block, pattern.group)):
        end = min(start + max(block, pattern.group), columns)
        part, errors = work[:, start:end].clone(), torch.zeros_like(work[:, start:end])
        factor = upper[start:end, start:end]
        kept = torch.ones_like(part, dtype=torch.bool)
        for column in range(end - start):
            if column % (pattern.group or end - start) == 0:
                chosen = slice(column, column + (pattern.group or end - start))
                scores = part[:, chosen] ** 2 / factor.diagonal()[chosen] ** 2
                flat = scores if pattern.group else scores.reshape(1, -1)
                kept[:, chosen] = keep_highest(flat, pattern).view_as(scores)
            error = part[:, column] * ~kept[:, column] / factor[column, column]
            part[:, column] *= kept[:, column]
            part[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
            errors[:, column] = error
        work[:, start:end] = part
        work[:, end:] -= errors @ upper[start:end, end:]
    return work.to(weight.dtype)


METHODS: Mapping[str, Callable[[torch.Tensor, torch.Tensor, Pattern], torch.Tensor]] = {
    "magnitude": magnitude,
    "wanda": wanda,
    "sparsegpt": sparsegpt,
}


def damage(weight: torch.Tensor, other: torch.Tensor, gram: torch.Tensor) -> float:
    """What a layer puts out otherwise, relative to what it puts out: ‖(W − W′)X‖² / ‖WX‖²."""

    def square(matrix: torch.Tensor) -> torch.Tensor:
        matrix = matrix.double()
        return ((matrix @ gram.double()) * matrix).sum()

    return float(square(weight - other) / square(weight).clamp_min(1e-30))


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that can be sparse, by qualified name: all of the backbone that are ``nn.Linear``."""
    found = architectures.of_model(model).linears(model)
    return {name: linear for name, linear in found.items() if isinstance(linear, nn.Linear)}


def fraction(model: nn.Module) -> float:
    """Fraction of the weights of those layers that are zero."""
    weights = [linear.weight.detach() for linear in linears(model).values()]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def grams(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    batches: Iterable[Mapping[str, torch.Tensor]],
    *,
    first_token_only: bool = False,
) -> dict[str, torch.Tensor]:
    """G of each of these layers, over the tokens that count for it.

    Args:
        batches, first_token_only: see ``listening.listen``.
    """
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, x: torch.Tensor, _: torch.Tensor) -> None:
        product = (x.T @ x).double()
        sums[name] = sums[name] + product if name in sums else product

    listening.listen(model, batches, layers, add, first_token_only=first_token_only)
    return sums


def _in_order(model: nn.Module) -> list[dict[str, nn.Linear]]:
    """The layers, by transformer layer, and what follows the last one."""
    found, groups = linears(model), []
    for layer in architectures.of_model(model).layer_list(model):
        inside = set(layer.modules())
        groups.append({name: linear for name, linear in found.items() if linear in inside})
    grouped = {name for group in groups for name in group}
    return [*groups, {name: linear for name, linear in found.items() if name not in grouped}]


def sparsify(
    model: nn.Module,
    batches: Sequence[Mapping[str, torch.Tensor]],
    *,
    method: str,
    pattern: Pattern,
    first_token_only: bool = False,
) -> tuple[nn.Module, dict[str, float]]:
    """Returns a model with zeros, and the ``damage`` to each layer on the calibration batches.

    Each transformer layer is given what those before it, with their zeros, put out.

    Args:
        batches, first_token_only: see ``listening.listen``.
        method: one of ``METHODS``.

    Raises:
        FeatherweightError: no layer can be sparse: GPT-2's are no ``nn.Linear``.
    """
    sparse = copy.deepcopy(model)
    if not linears(sparse):
        kind = sparse.config.model_type  # type: ignore[union-attr]
        raise FeatherweightError(
            f"pruning: the matrices of a {kind} are stored the other way round and cannot be sparse; leave sparsity "
            "off, or name another base_model"
        )
    damages: dict[str, float] = {}
    for group in _in_order(sparse):
        for name, gram in grams(sparse, group, batches, first_token_only=first_token_only).items():
            weight = group[name].weight.detach()
            changed = METHODS[method](weight, gram, pattern)
            damages[name] = damage(weight, changed, gram)
            group[name].weight.data.copy_(changed)
    return sparse, damages


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    """Which weights of those layers are zero: bool (O, I) by qualified name, of layers that have any."""
    found = {name: linear.weight.detach() == 0 for name, linear in linears(model).items()}
    return {name: mask for name, mask in found.items() if mask.any()}


@contextmanager
def held(model: nn.Module, zeros: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Keeps these weights zero while it is open: gradients are masked, and so is what momentum, or an optimizer that
    mixes the entries of a matrix, would make of them.

    Args:
        zeros: bool (O, I) by qualified name of a linear layer.
    """
    chosen = {name: layer for name, layer in linears(model).items() if name in zeros}

    def mask(linear: nn.Linear, kept: torch.Tensor) -> None:
        linear.weight.data.mul_(kept)  # not seen by autograd, for which nothing changes

    with ExitStack() as undo:
        for name, linear in chosen.items():
            kept = ~zeros[name].to(linear.weight.device)
            undo.callback(mask, linear, kept)
            undo.enter_context(linear.weight.register_hook(lambda gradient, kept=kept: gradient * kept))
            undo.enter_context(linear.register_forward_pre_hook(lambda module, _, kept=kept: mask(module, kept)))
        yield

"""How much a head or an FFN channel would be missed. B = rows, S = tokens, F = FFN width, K = inputs of a matrix.

A unit is a group of columns of the matrix that closes its block: D of the attention output for a head, one of the
second FFN matrix for a channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from tasks.ml.models import architectures, listening


@dataclass(frozen=True)
class LayerImportance:
    """Importance of one layer's parts; larger is missed more."""

    heads: torch.Tensor
    """(number of heads,)"""
    ffn: torch.Tensor
    """(FFN width,)"""


class _Block(NamedTuple):
    """The matrix that closes a block, and how many units its columns belong to: 0 where it was pruned away."""

    closing: nn.Linear
    units: int


def _blocks(model: nn.Module) -> list[_Block]:
    """Attention and FFN of each layer in turn."""
    family = architectures.of_model(model)
    architectures.require_cuttable(family)
    return [
        _Block(layer.get_submodule(closing), units)  # type: ignore[arg-type]
        for layer in family.layer_list(model)
        for closing, units in (
            (family.attention_output, family.num_heads(layer)), (family.ffn_down, family.ffn_width(layer))
        )
    ]  # fmt: skip


def _by_layer(blocks: Sequence[_Block], scores: Iterable[torch.Tensor]) -> list[LayerImportance]:
    """Deals out the scores of the blocks that are there, in order."""
    left = iter(scores)
    found = [next(left) if block.units else torch.zeros(0) for block in blocks]
    return [LayerImportance(heads, ffn) for heads, ffn in zip(found[::2], found[1::2], strict=True)]


def taylor(
    model: nn.Module,
    batches: Iterable[dict[str, torch.Tensor]],
    loss: Callable[[torch.Tensor, dict[str, torch.Tensor]], torch.Tensor],
) -> list[LayerImportance]:
    """First-order Taylor importance of every head and FFN channel.

    With a gate g = 1 on each unit, the change of the loss on removing it is |∂L/∂g| to first order (Molchanov et al.
    2019, arXiv:1906.10771, eq. 8; for heads Michel, Levy & Neubig 2019, arXiv:1905.10650, eq. 2). The absolute value
    is taken per row before the mean, so that opposite effects on different rows do not cancel.

    Args:
        batches: ``input_ids`` and ``attention_mask`` (B, S), plus whatever ``loss`` needs.
        loss: from the model's logits and the batch to a mean over rows.
    """
    blocks = _blocks(model)
    there = [block for block in blocks if block.units]
    gates: dict[int, torch.Tensor] = {}

    def gate_input(number: int, block: _Block) -> Callable[..., object]:
        """Multiplies (B, S, K) by gates of one, one per row and unit."""

        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            x, *rest = args
            gate = torch.ones(x.shape[0], 1, block.units, 1, device=x.device, requires_grad=True)
            gates[number] = gate
            gated = x.unflatten(-1, (block.units, x.shape[-1] // block.units)) * gate
            return (gated.flatten(-2), *rest)

        return hook

    totals: list[torch.Tensor] = []
    rows = 0
    model.eval()
    with ExitStack() as hooks:
        for number, block in enumerate(there):
            hooks.enter_context(block.closing.register_forward_pre_hook(gate_input(number, block)))
        for batch in batches:
            output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            size = len(batch["input_ids"])
            gradients = torch.autograd.grad(loss(output.logits, batch) * size, [gates[n] for n in range(len(there))])
            per_gate = [gradient.abs().sum(dim=0).flatten() for gradient in gradients]
            totals = [a + b for a, b in zip(totals, per_gate, strict=True)] if totals else per_gate
            rows += size
    return _by_layer(blocks, [total / rows for total in totals])


@torch.no_grad()
def activation(
    model: nn.Module, batches: Iterable[dict[str, torch.Tensor]], *, first_token_only: bool = False
) -> list[LayerImportance]:
    """Importance of every head and FFN channel by how much it adds to the output of its block.

    The mean square of a column's input times its squared norm, E[x_j²] · ‖W_:j‖²: Wanda's metric (Sun et al. 2024,
    arXiv:2306.11695, eq. 1) taken over whole columns, as activations alone are in Minitron (Muralidharan et al. 2024,
    arXiv:2407.14679, section 2.2). Squares, because those of a head's columns then add up to the head's. No loss and
    no label is asked for.

    Args:
        batches, first_token_only: see ``listening.listen``.
    """
    blocks = _blocks(model)
    there = [block for block in blocks if block.units]
    closings = [block.closing for block in there]
    squares = listening.means(
        model, batches, closings, lambda before, _: before.square().sum(dim=0), first_token_only=first_token_only
    )
    scores = [
        (square * block.closing.weight.square().sum(dim=0)).unflatten(0, (block.units, -1)).sum(dim=1)
        for block, square in zip(there, squares, strict=True)
    ]
    return _by_layer(blocks, scores)

"""How much the loss would change if a head or an FFN channel were gone. B = rows, S = tokens, F = FFN width."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from tasks.ml import families


@dataclass(frozen=True)
class LayerImportance:
    """Importance of one layer's parts; larger is missed more."""

    heads: torch.Tensor
    """(number of heads,)"""
    ffn: torch.Tensor
    """(FFN width,)"""


def _gate_input(module: nn.Module, groups: int, gates: list[torch.Tensor]) -> torch.utils.hooks.RemovableHandle:
    """Multiplies a module's input (B, S, K) by gates of one, one per row and group of K / groups columns."""

    def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x, *rest = args
        gate = torch.ones(x.shape[0], 1, groups, 1, device=x.device, requires_grad=True)
        gates.append(gate)
        gated = x.unflatten(-1, (groups, x.shape[-1] // groups)) * gate
        return (gated.flatten(-2), *rest)

    return module.register_forward_pre_hook(hook)


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
    family = families.of(model.config.model_type)  # type: ignore[union-attr, arg-type]
    layers = list(family.layer_list(model))
    gates: list[torch.Tensor] = []
    handles = []
    for layer in layers:
        handles.append(_gate_input(layer.get_submodule(family.attention_output), family.num_heads(layer), gates))
        handles.append(_gate_input(layer.get_submodule(family.ffn_down), family.ffn_width(layer), gates))
    totals: list[torch.Tensor] = []
    rows = 0
    model.eval()
    try:
        for batch in batches:
            gates.clear()
            output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            size = len(batch["input_ids"])
            gradients = torch.autograd.grad(loss(output.logits, batch) * size, gates)
            per_gate = [gradient.abs().sum(dim=0).flatten() for gradient in gradients]
            totals = [a + b for a, b in zip(totals, per_gate, strict=True)] if totals else per_gate
            rows += size
    finally:
        for handle in handles:
            handle.remove()
    return [LayerImportance(heads=h / rows, ffn=f / rows) for h, f in zip(totals[::2], totals[1::2], strict=True)]

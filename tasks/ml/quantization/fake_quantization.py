"""Quantization-aware training: the forward pass computes with quantized numbers, the backward pass as if it had not.

Jacob et al. 2018 (arXiv:1712.05877, section 3), with the straight-through estimator of Bengio et al. 2013
(arXiv:1308.3432): rounding has the gradient of the identity. Values that a static range cuts off have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tasks.ml.models import decoders
from tasks.ml.models.quantization_spec import INT8_STATIC, LinearScheme, Spec
from tasks.ml.quantization import simulation, weights_alone
from tasks.ml.quantization.blocks import HEAD, TABLE, Blocks


def straight_through(x: torch.Tensor, rounding: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Rounds in the forward pass only, to the very values: x + (rounding(x) − x) would round once more."""
    return rounding(x).detach() + (x - x.detach())


def _linear(linear: nn.Linear, how: LinearScheme, block_size: int, x: torch.Tensor) -> torch.Tensor:
    """Computes what ``simulation.SimulatedLinear`` does, in fp32 as it does."""
    x = simulation.divided(x, how)
    if how.scheme == INT8_STATIC:
        x = x.clamp(-how.zero_point * how.scale, (simulation.UINT8_MAX - how.zero_point) * how.scale)
    x = straight_through(x, lambda values: simulation.input_on_grid(values, how, block_size))
    weight = simulation.smoothed(linear.weight, how)
    weight = straight_through(weight, lambda values: simulation.weight_on_grid(values, how, block_size))
    return F.linear(x, weight, linear.bias)


def _in_blocks(product: Any, blocks: Blocks, learns: bool, x: torch.Tensor) -> torch.Tensor:
    """Computes a product in blocks, of a weight that is rounded by their scales and zero points."""
    if blocks.format.rounds_inputs:
        x = straight_through(x.float(), partial(simulation.int8_blocks, block_size=blocks.format.block_size))
    weight = product.weight if isinstance(product, nn.Linear) else product.weight.T
    if learns:
        weight = straight_through(weight, lambda values: blocks.recoded(values).dense())
    return F.linear(x, weight, product.bias)


@contextmanager
def products(
    model: nn.Module, spec: Spec | None = None, codes: Mapping[str, Blocks] = MappingProxyType({})
) -> Iterator[None]:
    """Computes products as if quantized while it is open; all parameters keep their names.

    The token table is rounded once, on entering: trained with ``embeddings: frozen`` it stays on its grid, and so does
    a head, which is rounded already.

    Args:
        spec: of linear layers whose scales follow from their weights.
        codes: blocks by qualified name, ``HEAD`` and ``TABLE``, whose scales and zero points stay.
    """
    spec, device = spec or Spec(), next(model.parameters()).device
    computed: dict[nn.Module, Callable[[torch.Tensor], torch.Tensor]] = {}
    for name, how in spec.linears.items():
        linear: Any = model.get_submodule(name)
        computed[linear] = partial(_linear, linear, how, spec.block_size)
    held: list[nn.Parameter] = []
    for name, blocks in codes.items():
        if name != TABLE:
            product: Any = simulation.product(model, name)
            computed[product] = partial(_in_blocks, product, blocks.to(device), name != HEAD)
            if name == HEAD and product.weight.requires_grad:
                held.append(product.weight.requires_grad_(False))
    for one, forward in computed.items():
        one.forward = forward
    with torch.no_grad():
        for name, bits in spec.embeddings.items():
            table: nn.Embedding = model.get_submodule(name)  # type: ignore[assignment]
            table.weight.copy_(simulation.simulate_table(table.weight, bits, spec.block_size))
    try:
        yield
    finally:
        for one in computed:
            del one.forward
        for weight in held:
            weight.requires_grad_(True)


@torch.no_grad()
def unsettle(model: nn.Module, codes: Mapping[str, Blocks], exact: nn.Module) -> None:
    """Moves rounded weights, in place, to where they were before, as near as they can come and keep their codes: a
    weight on its grid takes many small steps to the next code, wherever it is drawn."""
    family = decoders.of_model(model)
    for one, before in zip(family.projections(model), family.projections(exact), strict=True):
        if one.name in codes:
            one.weight.copy_(codes[one.name].nearby(before.weight))


@torch.no_grad()
def settle(model: nn.Module, spec: Spec, codes: Mapping[str, Blocks] = MappingProxyType({})) -> dict[str, Blocks]:
    """Puts, in place, the weights of all products onto their grids; returns the codes that they have there."""
    found = dict(codes)
    if codes:
        projections = decoders.of_model(model).projections(model)
        found |= {one.name: codes[one.name].recoded(one.weight) for one in projections if one.name in codes}
        weights_alone.adopt(model, found)
    for name, how in spec.linears.items():
        linear: nn.Linear = model.get_submodule(name)  # type: ignore[assignment]
        linear.weight.copy_(simulation.SimulatedLinear(linear, how, spec.block_size).dense())
    return found

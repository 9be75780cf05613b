"""Quantization-aware training: the forward pass computes with quantized numbers, the backward pass as if it had not.

Jacob et al. 2018 (arXiv:1712.05877, section 3), with the straight-through estimator of Bengio et al. 2013
(arXiv:1308.3432): rounding has the gradient of the identity. Values that a static range cuts off have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from tasks.ml.models.quantization_spec import INT8_STATIC, LinearScheme, Spec
from tasks.ml.quantization import simulation


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


@contextmanager
def linears(model: nn.Module, spec: Spec | None) -> Iterator[None]:
    """Computes the linear layers that a spec names as if quantized while it is open; all parameters keep their names.

    The token table is rounded once, on entering: trained with ``embeddings: frozen`` it stays on its grid.
    """
    spec = spec or Spec()
    named = {model.get_submodule(name): how for name, how in spec.linears.items()}
    for linear, how in named.items():
        linear.forward = partial(_linear, linear, how, spec.block_size)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, bits in spec.embeddings.items():
            table: nn.Embedding = model.get_submodule(name)  # type: ignore[assignment]
            table.weight.copy_(simulation.simulate_table(table.weight, bits, spec.block_size))
    try:
        yield
    finally:
        for linear in named:
            del linear.forward


@torch.no_grad()
def settle(model: nn.Module, spec: Spec) -> None:
    """Puts, in place, the weights of all linear layers that the spec names onto their grid."""
    for name, how in spec.linears.items():
        linear: nn.Linear = model.get_submodule(name)  # type: ignore[assignment]
        linear.weight.copy_(simulation.SimulatedLinear(linear, how, spec.block_size).dense())

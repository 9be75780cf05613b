"""GPTQ: rounds a weight column by column and lets the columns still to come make up for each rounding.

Frantar et al. 2022 (arXiv:2210.17323), algorithm 1, on the grids of ``quantization``. Weights come back *on* their
grid: scales follow from the largest element or pair of a row, or the largest element of a block, so those keep their
codes whatever has been added to them, and whoever derives codes from the weight finds exactly these. O = output
channels, I = input channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import nn

from tasks.ml.models import families, listening
from tasks.ml.models.quantization_spec import INT4, LinearScheme, Spec
from tasks.ml.quantization import calibration, simulation

DAMPING = 0.01
"""Added to the Hessian's diagonal, in its mean (section 3.3, step 3)."""


def layer_error(weight: torch.Tensor, rounded: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Squared error of each output over the calibration tokens (O,): (w − q) H (w − q)ᵀ, with H = XᵀX (I, I)."""
    difference = (weight - rounded).double()
    return ((difference @ hessian.double()) * difference).sum(dim=-1)


def inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the damped inverse Hessian (I, I), which algorithm 1 reads row by row."""
    damped = hessian.double().clone()
    diagonal = damped.diagonal()
    diagonal += DAMPING * diagonal.mean()
    diagonal[diagonal == 0] = 1.0
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


class _Grid(NamedTuple):
    """Of a row or a block of its columns (O, B): the scale, and what it follows from, which keeps its value."""

    scale: torch.Tensor
    """(O, 1)."""
    kept: torch.Tensor
    """Which elements keep their value (O, B)."""
    nearest: torch.Tensor
    """Each element, rounded to nearest (O, B)."""

    @classmethod
    def of(cls, weight: torch.Tensor, scheme: str) -> Self:
        largest = weight.abs().argmax(dim=-1, keepdim=True)
        kept = torch.zeros_like(weight, dtype=torch.bool).scatter_(-1, largest, True)
        if scheme == INT4:
            scale = weight.gather(-1, largest) / -(simulation.INT4_MAX + 1)
            return cls(torch.where(scale.abs() < 1e-12, torch.full_like(scale, 1e-12), scale), kept, weight)
        codes, scale = simulation.quantize_weight(weight)
        sums = simulation.pair_sums(simulation.in_pairs(weight))
        pair = torch.zeros_like(sums, dtype=torch.bool).scatter_(-1, sums.argmax(dim=-1, keepdim=True), True)
        pair = pair.repeat_interleave(2, dim=-1)[:, : weight.shape[1]]
        return cls(scale, torch.where(scale > simulation.row_scale(weight), pair, kept), codes * scale)

    def codes(self) -> torch.Tensor:
        """Those of the elements that are kept, and 0 (O, B rounded up to whole pairs)."""
        return simulation.in_pairs((self.nearest / self.scale).round() * self.kept).flatten(-2)


def _limits(codes: torch.Tensor, column: int, scheme: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and largest code of a column (O,) beside the codes of its neighbour."""
    if scheme == INT4:
        return codes.new_tensor(-(simulation.INT4_MAX + 1)), codes.new_tensor(simulation.INT4_MAX)
    neighbour = codes[:, column ^ 1]
    rooms = (simulation.PAIR_MAX - side.clamp_min(0) for side in (-neighbour, neighbour))
    low, high = (room.clamp_max(simulation.INT8_MAX) for room in rooms)
    return -low, high


def round_weight(
    weight: torch.Tensor, hessian: torch.Tensor, *, scheme: str = "int8-dynamic", block_size: int = 32
) -> torch.Tensor:
    """Rounds a weight (O, I) onto its scheme's grid with least error on the calibration tokens.

    Weights that are zero stay zero: pruning chose them, and they do not make up for others.

    An output for which plain rounding is better, as layers with few tokens can have, is rounded plainly: no output's
    ``layer_error`` is larger than with rounding to nearest.

    Args:
        hessian: XᵀX over tokens (I, I), of the input that the weight is multiplied by.
    """
    nearest = simulation.weight_on_grid(weight, LinearScheme(scheme), block_size)
    factor = inverse_factor(hessian).to(weight.dtype)
    width = block_size if scheme == INT4 else weight.shape[1]
    work, rounded, there = weight.clone(), torch.empty_like(weight), weight != 0
    for start in range(0, weight.shape[1], width):
        end = min(start + width, weight.shape[1])
        # Of 4-bit blocks the scale is that of the weight as corrected so far.
        block = work[:, start:end] * there[:, start:end]
        grid = _Grid.of(block, scheme)
        codes = grid.codes()
        for column in range(start, end):
            at = column - start
            kept, scale = grid.kept[:, at], grid.scale.squeeze(-1)
            code = (work[:, column] / scale).round().clamp(*_limits(codes, at, scheme)) * there[:, column]
            codes[:, at] = torch.where(kept, codes[:, at], code)
            value = torch.where(kept, grid.nearest[:, at] * there[:, column], code * scale)
            rounded[:, column] = value
            error = (work[:, column] - value) / factor[column, column]
            work[:, column + 1 :] -= torch.outer(error, factor[column, column + 1 :])
    better = layer_error(weight, rounded, hessian) <= layer_error(weight, nearest, hessian)
    return torch.where(better.unsqueeze(-1), rounded, nearest)


@torch.no_grad()
def apply(
    model: nn.Module, spec: Spec, batches: Callable[[], calibration.Batches], *, first_token_only: bool = False
) -> dict[str, float]:
    """Rounds, in place, the weights of all linear layers that the spec names, in the order in which they are computed.

    Each layer's Hessian is of what it reads once those before it are rounded, quantized as it will be (section 3.1, and
    the authors' code for the order).

    Args:
        batches: gives the calibration split, anew each time.
        first_token_only: whether the head reads the first token and no other.

    Returns:
        Each layer's squared error over that of rounding to nearest, at most 1.
    """
    ratios: dict[str, float] = {}
    for group in families.of_model(model).linear_groups(model):
        linears: dict[str, nn.Linear] = {name: model.get_submodule(name) for name in group if name in spec.linears}  # type: ignore[misc]
        hessians: dict[str, torch.Tensor] = {}

        def add(name: str, x: torch.Tensor, _: object, hessians: dict[str, torch.Tensor] = hessians) -> None:
            how = spec.linears[name]
            x = simulation.input_on_grid(simulation.divided(x, how), how, spec.block_size)
            hessians[name] = hessians[name] + x.T @ x if name in hessians else x.T @ x

        if linears:
            listening.listen(model, batches(), linears, add, first_token_only=first_token_only)
        for name, linear in linears.items():
            how = spec.linears[name]
            weight = simulation.smoothed(linear.weight.detach(), how)
            rounded = round_weight(weight, hessians[name], scheme=how.scheme, block_size=spec.block_size)
            nearest = simulation.weight_on_grid(weight, how, spec.block_size)
            errors = [layer_error(weight, one, hessians[name]).sum().item() for one in (rounded, nearest)]
            ratios[name] = errors[0] / errors[1] if errors[1] else 1.0
            linear.weight.copy_(simulation.divided(rounded, how))
    return ratios

"""Which products get how many bits, so that a size is kept and least is lost.

What rounding costs is estimated to the second order, with the squared gradients of the loss for its curvature, as
SqueezeLLM does (Kim et al. 2023, arXiv:2306.07629, section 4.1) for weights and here for outputs: a token's output
that is off by e costs ½ (g · e)², g being the loss's gradient there, and outputs are taken not to know of each other.
So one pass backwards prices every format of every layer. O = outputs, I = inputs, B = rows, S = tokens, T = all tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.quantization import gptq
from tasks.ml.quantization.blocks import Blocks, Format

HALVINGS = 100


class Price(NamedTuple):
    """Of a format, for layers that are stored as one product."""

    loss: float
    """Nats a token."""
    nbytes: int


def gradients(model: nn.Module, rows: Sequence[torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Mean square, over tokens, of the gradient of the texts' loss in each output (O,) of linear layers.

    Args:
        rows: token ids of the calibration split, (B, S) each, without padding.
        names: of the layers.
    """
    sums: dict[str, torch.Tensor] = {}
    tokens = sum(ids.numel() for ids in rows)

    def listening(name: str) -> Any:
        def add(_: nn.Module, __: Any, out: tuple[torch.Tensor, ...]) -> None:
            square = out[0].float().square().flatten(0, -2).sum(dim=0)
            sums[name] = sums[name] + square if name in sums else square

        return add

    handles = [model.get_submodule(name).register_full_backward_hook(listening(name)) for name in names]
    try:
        for ids in rows:
            logits = model(input_ids=ids, use_cache=False).logits
            # The sum, so that each token's gradient is its own, however long the texts are.
            F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
            model.zero_grad(set_to_none=True)
    finally:
        for handle in handles:
            handle.remove()
    return {name: square / tokens for name, square in sums.items()}


def cost(weight: torch.Tensor, rounded: Blocks, hessian: torch.Tensor, gradient: torch.Tensor, *, tokens: int) -> float:
    """Nats a token that a rounded weight (O, I) costs.

    Args:
        hessian: XᵀX over tokens (I, I), of the input that the weight is multiplied by.
        gradient: mean square of the loss's gradient in each output (O,).
        tokens: that the Hessian is over.
    """
    errors = gptq.layer_error(weight, rounded.dense(), hessian)
    return float((gradient.double() * errors).sum() / (2 * tokens))


def choose(prices: Mapping[str, Mapping[Format, Price]], *, most: int) -> dict[str, Format]:
    """Picks a format for each product, so that all together have at most so many bytes, and little is lost.

    By the price of a byte at which the choice just fits, which is the best choice of its size (Shoham & Gersho 1988,
    "Efficient bit allocation for an arbitrary set of quantizers").

    Raises:
        FeatherweightError: the smallest formats are larger.
    """

    def at(rate: float) -> dict[str, Format]:
        return {
            name: min(of, key=lambda form: (of[form].loss + rate * of[form].nbytes, of[form].nbytes))
            for name, of in prices.items()
        }

    def size(choice: Mapping[str, Format]) -> int:
        return sum(prices[name][form].nbytes for name, form in choice.items())

    smallest = sum(min(price.nbytes for price in of.values()) for of in prices.values())
    if smallest > most:
        raise FeatherweightError(
            f"quantization: {most:,} bytes are fewer than the {smallest:,} that the smallest formats take"
        )
    if size(at(0.0)) <= most:
        return at(0.0)
    low, high = 0.0, 1.0
    while size(at(high)) > most:
        low, high = high, 10 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if size(at(middle)) > most else (low, middle)
    return at(high)

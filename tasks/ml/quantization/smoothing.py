"""SmoothQuant: outliers of activations are moved into weights, where a scale per channel can hold them.

Xiao et al. 2022 (arXiv:2211.10438): Y = (X diag(s)⁻¹)·(diag(s) W), eq. 3, with s_j = max|X_j|^α / max|W_j|^(1−α)
(eq. 4). The paper folds s⁻¹ into the normalization before a layer. Encoders of the BERT family normalize *after* the
residual, so that what a norm gives is also added further on and must not change: there s⁻¹ stays with the layer, as one
multiplication by a constant. What concatenated heads give does fold, exactly and for nothing: a mix of values commutes
with a scale per channel, so the value projection takes it. I = input channels, O = output channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from tasks.ml.models import families
from tasks.ml.models.quantization_spec import Spec
from tasks.ml.quantization import calibration

SMALLEST = 1e-5
"""Maxima below this count as this: a channel that is always zero needs no scale."""


def divisors(inputs: torch.Tensor, weights: torch.Tensor, *, alpha: float) -> torch.Tensor:
    """What to divide each input channel by (I,): eq. 4, with their geometric mean at 1 so that the norm stays.

    Args:
        inputs: largest magnitude of each channel of the input (I,).
        weights: largest magnitude of each column of the weight (I,).
    """
    logarithm = alpha * inputs.clamp_min(SMALLEST).log() - (1 - alpha) * weights.clamp_min(SMALLEST).log()
    return (logarithm - logarithm.mean()).exp()


@torch.no_grad()
def smooth(
    model: nn.Module,
    spec: Spec,
    batches: Callable[[], calibration.Batches],
    *,
    alpha: float,
    first_token_only: bool = False,
) -> Spec:
    """Smooths, in place, what folds exactly, and returns the spec with the divisors of the other layers.

    The model computes what it did; how much easier it is to quantize is to be measured.

    Args:
        batches: gives the calibration split.
        alpha: 0 leaves all difficulty with the activations, 1 moves all of it into the weights.
        first_token_only: whether the head reads the first token and no other.
    """
    family = families.of_model(model)
    groups = [group for group in family.linear_groups(model) if all(name in spec.linears for name in group)]
    first = {group[0]: model.get_submodule(group[0]) for group in groups}
    maxima = calibration.channel_maxima(model, first, batches(), first_token_only=first_token_only)
    linears = dict(spec.linears)
    for group in groups:
        members: list[nn.Linear] = [model.get_submodule(name) for name in group]  # type: ignore[misc]
        columns = torch.stack([linear.weight.abs().amax(dim=0) for linear in members]).amax(dim=0)
        divisor = divisors(maxima[group[0]], columns, alpha=alpha)
        layer, is_attention_output, _ = group[0].partition(f".{family.attention_output}")
        if is_attention_output:
            for parameter in model.get_submodule(f"{layer}.{family.value}").parameters():  # by output channel
                parameter.div_(divisor.unsqueeze(-1) if parameter.dim() > 1 else divisor)
            members[0].weight *= divisor
        else:
            linears |= {name: replace(linears[name], smoothing=tuple(divisor.tolist())) for name in group}
    return replace(spec, linears=linears)

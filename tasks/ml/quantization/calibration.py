"""What linear layers read on the calibration split, and the ranges that static quantization takes from it.

B = rows of a batch, S = tokens, I = input channels, T = tokens that count for a layer (see ``listening``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import listening
from tasks.ml.models.quantization_spec import INT8_STATIC, Spec
from tasks.ml.quantization.simulation import UINT8_MAX, divided

PERCENTILE = 99.99
"""Per cent of the values that ``percentile`` keeps within the range."""
BINS = 2048
"""Of the histogram of magnitudes, as TensorRT has it."""
LEVELS = 128
"""Codes that magnitudes have: half of 256."""

Batches = Iterable[Mapping[str, torch.Tensor]]


def channel_maxima(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Batches, *, first_token_only: bool = False
) -> dict[str, torch.Tensor]:
    """Largest magnitude of each input channel (I,) of each layer, over the tokens that count for it."""
    maxima: dict[str, torch.Tensor] = {}

    def look(name: str, x: torch.Tensor, _: torch.Tensor) -> None:
        largest = x.abs().amax(dim=0)
        maxima[name] = torch.maximum(maxima[name], largest) if name in maxima else largest

    listening.listen(model, batches, layers, look, first_token_only=first_token_only)
    return maxima


@dataclass
class Values:
    """The values that one layer read: their extremes, and histograms of both signs' magnitudes up to the largest."""

    low: float = 0.0
    high: float = 0.0
    negative: torch.Tensor = field(default_factory=lambda: torch.zeros(BINS))
    positive: torch.Tensor = field(default_factory=lambda: torch.zeros(BINS))

    @property
    def largest(self) -> float:
        return max(-self.low, self.high)

    def widen(self, x: torch.Tensor) -> None:
        self.low, self.high = min(self.low, x.min().item()), max(self.high, x.max().item())

    def count(self, x: torch.Tensor) -> None:
        self.positive += torch.histc(x[x > 0], BINS, 0, self.largest).cpu()
        self.negative += torch.histc(-x[x < 0], BINS, 0, self.largest).cpu()


def percentile(values: Values, share: float = PERCENTILE) -> tuple[float, float]:
    """The range without the outermost (100 − share) per cent of the values, half of them on either side."""
    spared = (values.negative.sum() + values.positive.sum()).item() * (1 - share / 100) / 2

    def end(histogram: torch.Tensor) -> float:
        beyond = histogram.flip(0).cumsum(0).flip(0)  # of each bin: values in it or farther out
        return values.largest * int((beyond > spared).sum()) / BINS

    return max(values.low, -end(values.negative)), min(values.high, end(values.positive))


def entropy(values: Values) -> tuple[float, float]:
    """The threshold of magnitudes that loses least information: min KL(P‖Q) over clipped histograms.

    Migacz 2017, 8-bit inference with TensorRT: P is the histogram clipped at i bins, what lies beyond added to its last
    bin; Q is P without that addition, merged into 128 levels and spread again over the bins of each level that are not
    empty. The threshold clips both signs.
    """
    histogram = (values.negative + values.positive).double()
    best, threshold = math.inf, values.largest
    for bins in range(LEVELS, BINS + 1, LEVELS // 8):
        inner = histogram[:bins]
        clipped = inner.clone()
        clipped[-1] += histogram[bins:].sum()
        level = torch.arange(bins) * LEVELS // bins
        filled = (inner > 0).double()
        mass, width = (torch.zeros(LEVELS).double().index_add_(0, level, part) for part in (inner, filled))
        spread = (mass / width.clamp_min(1))[level] * filled
        divergence = _kl(clipped, spread)
        if divergence < best:
            best, threshold = divergence, values.largest * bins / BINS
    return max(values.low, -threshold), min(values.high, threshold)


def _kl(p: torch.Tensor, q: torch.Tensor) -> float:
    """KL(P‖Q) in nats of two histograms, made distributions; where Q is empty and P is not, Q counts as 1e-9."""
    p, q = p / p.sum().clamp_min(1e-30), q / q.sum().clamp_min(1e-30)
    there = p > 0
    return float((p[there] * (p[there] / q[there].clamp_min(1e-9)).log()).sum())


RANGES: dict[str, Callable[[Values], tuple[float, float]]] = {
    "min-max": lambda values: (values.low, values.high),
    "percentile": percentile,
    "entropy": entropy,
}


def affine(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of uint8 for a range that includes zero (Jacob et al. 2018, section 2.1); zero is exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    # As a float that fp32 holds, so that spec, simulation and graph divide by the same number.
    scale = torch.tensor(max((high - low) / UINT8_MAX, 1e-12), dtype=torch.float32).item()
    return scale, min(max(round(-low / scale), 0), UINT8_MAX)


def calibrate(
    model: nn.Module, spec: Spec, batches: Callable[[], Batches], *, method: str, first_token_only: bool = False
) -> Spec:
    """Fills in scale and zero point of every input that the spec quantizes statically.

    Ranges are those of the unquantized model, smoothed where the spec says so. The batches are read twice: for the
    extremes, and for histograms between them.

    Args:
        batches: gives the calibration split, anew each time.
        method: one of ``RANGES``.
        first_token_only: whether the head reads the first token and no other.

    Raises:
        FeatherweightError: the calibration split is empty.
    """
    linears = dict(spec.linears)
    values = {name: Values() for name, how in linears.items() if how.scheme == INT8_STATIC}
    layers = {name: model.get_submodule(name) for name in values}

    def read(take: Callable[[Values, torch.Tensor], None]) -> None:
        def hear(name: str, x: torch.Tensor, _: torch.Tensor) -> None:
            take(values[name], divided(x, spec.linears[name]))

        listening.listen(model, batches(), layers, hear, first_token_only=first_token_only)

    read(Values.widen)
    if any(seen.largest == 0 for seen in values.values()):
        raise FeatherweightError(
            "quantization: int8-static needs rows to take ranges from, and the calibration split has none; "
            "raise data.calibration_fraction, or choose int8-dynamic"
        )
    if method != "min-max":
        read(Values.count)
    for name, seen in values.items():
        scale, zero_point = affine(*RANGES[method](seen))
        linears[name] = replace(linears[name], scale=scale, zero_point=zero_point)
    return replace(spec, linears=linears)

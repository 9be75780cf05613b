"""What quantization makes of a model: an encoder's products become integer, of a decoder its weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tasks.ml.data.datasets import Split
from tasks.ml.models import architectures, quantization_spec
from tasks.ml.models.decoders import Decoder
from tasks.ml.models.quantization_spec import Spec
from tasks.ml.problem import Problem
from tasks.ml.quantization import post_training, weights_alone
from tasks.ml.quantization.blocks import Blocks
from tasks.ml.quantization.sensitivity import Scan


@dataclass(frozen=True)
class Quantized:
    """How a model, whose weights were rounded in place, is to be stored and computed.

    Attributes:
        spec: what of it becomes integer by rules that ``simulation`` knows.
        codes: weights that were rounded into blocks, where no rule finds the codes again.
        scan: what each layer would have cost, where that was measured.
    """

    spec: Spec
    codes: Mapping[str, Blocks] = field(default_factory=dict)
    scan: Scan | None = None

    def num_bytes(self, model: nn.Module) -> int:
        """Bytes of the model's weights as they are stored."""
        if isinstance(architectures.of_model(model), Decoder):
            return weights_alone.num_bytes(model, self.codes)
        return quantization_spec.num_bytes(model, self.spec)


def decide(
    model: nn.Module,
    problem: Problem,
    calibration: Split,
    *,
    pad_id: int,
    plan: Mapping[str, Any],
    bits: float,
    exact_inputs: bool,
    rounding: str,
    smoothing: float,
    ranges: str,
    max_damage: float,
) -> Quantized:
    """Chooses scales and codes on the calibration split, and rounds the model in place.

    Args:
        plan: keyword arguments of ``quantization_spec.plan``.
        bits: of a code in a decoder's linear layers, on average.
        exact_inputs: whether they are multiplied in floats.
        rounding: ``nearest`` or ``gptq``.
        smoothing, ranges, max_damage: ``alpha``, ``method`` and ``max_damage`` of ``post_training.decide``.
    """
    if isinstance(architectures.of_model(model), Decoder):
        if not plan["linears"]:
            return Quantized(Spec())
        codes = weights_alone.decide(
            model,
            calibration.input_ids,
            bits=bits,
            exact_inputs=exact_inputs,
            block_size=plan["block_size"],
            table_bits=plan["token_bits"],
            rounding=weights_alone.ROUNDINGS[rounding],
            length=max(map(len, calibration.input_ids)),
        )
        return Quantized(Spec(), codes)
    spec, scan = post_training.decide(
        model,
        quantization_spec.plan(model, **plan),
        problem,
        calibration,
        pad_id=pad_id,
        alpha=smoothing,
        method=ranges,
        max_damage=max_damage,
        use_gptq=rounding == "gptq",
    )
    return Quantized(spec, scan=scan)

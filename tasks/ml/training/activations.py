"""What a model and a loss hold of each row while they learn from it: the theory of ``cost_model``, for a
model as it is trained here. S = tokens of a row, A = heads, H = hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks.ml.models import attention, modeling
from tasks.ml.training.precision import Choice, length_multiple
from tasks.ml.xray import cost_model
from tasks.ml.xray.architecture import Architecture

AUTOCAST_BYTES = 2.5
"""Per element that is kept under autocast to 16 bits: norms and residual sums stay fp32. The most of what autograd kept
of encoders with and without dropout, at 16 and 128 tokens."""
AROUND_FP32_BYTES = 3.25
"""The same where attention is computed in fp32 between them (``attention.IN_FP32``)."""
PRODUCT_BYTES, PRODUCTS, PRODUCTS_KEPT = 0.7e6, 15, 1024
"""Of oneDNN, where lengths are rounded up for its sake: what it compiles per product and keeps; different products of a
layer, forward and backward; and how many it keeps."""


@dataclass(frozen=True)
class Demand:
    """Bytes that computing takes beside weights, gradients and optimizer state."""

    row: float = 0.0
    """What one of the longest rows takes at most: what it keeps until its backward pass, and one layer's gradients."""
    row_again: float = 0.0
    """The same where the activations of each layer are computed again."""
    once: float = 0.0
    """However few rows are computed: copies of weights, compiled products."""
    answers: float = 0.0
    """Of a tutor, which stay."""

    def __add__(self, other: Demand) -> Demand:
        theirs = asdict(other)
        return Demand(**{name: value + theirs[name] for name, value in asdict(self).items()})


def _architecture(model: nn.Module) -> Architecture:
    config: Any = model.config
    return Architecture.from_config(config.to_dict() | {modeling.SHAPES: modeling.description(model)})


def _per_row(model: nn.Module, precision: Choice) -> dict[str, Any]:
    """How activations are kept, as arguments of ``cost_model.activation_bytes``."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    attends = attention.affordable(model, precision.autocast)
    rounded = AROUND_FP32_BYTES if attends == attention.IN_FP32 else AUTOCAST_BYTES
    element = 4.0 if precision.autocast is None else rounded
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    return {
        "batch": 1,
        "bytes_per_element": element,
        "fused_attention": attends not in (attention.DROPPING, "eager"),
        "dropout_bytes": (element if on_cpu else 1) * drops,
    }


def _widest_layer(shapes: Architecture) -> Architecture:
    return replace(shapes, layers=tuple(sorted(shapes.layers, key=lambda layer: (layer.ffn, layer.heads))[-1:]))


def of_model(model: nn.Module, precision: Choice, *, lengths: Sequence[int], first_token_only: bool) -> Demand:
    """What a model takes to learn rows.

    Args:
        lengths: S of each row.
        first_token_only: whether the last layer's blocks run on the first token alone.
    """
    shapes, how = _architecture(model), _per_row(model, precision)
    how["length"] = max(lengths)
    layer = cost_model.activation_bytes(_widest_layer(shapes), **how)
    if first_token_only:
        shapes = replace(shapes, layers=(*shapes.layers[:-1], replace(shapes.layers[-1], ffn=0)))
    once = 0.0
    if precision.autocast is not None:
        once += 2 * sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)))
    multiple = length_multiple(precision, next(model.parameters()).device)
    if multiple > 1:
        once += PRODUCT_BYTES * min(PRODUCTS_KEPT, PRODUCTS * len({-(-length // multiple) for length in lengths}))
    return Demand(
        row=layer + cost_model.activation_bytes(shapes, **how),
        row_again=layer + cost_model.activation_bytes(shapes, checkpointing=True, **how),
        once=once,
    )


def of_teacher(teacher: nn.Module, precision: Choice, *, length: int, tokens: int, layers: int, vectors: int) -> Demand:
    """What learning from a teacher takes beside what the student does.

    The teacher's hidden states and vectors are there as it computed them, as kept, and padded to the batch; a loss
    keeps both models' states in fp32, and of each kind of vector the relations (A, S, S) of both.

    Args:
        tokens: of all rows.
        layers: whose hidden states are compared.
        vectors: kinds of vectors whose relations are compared: of queries, keys, values.
    """
    shapes = _architecture(teacher)
    wide, heads = shapes.hidden, max(shapes.layers[-1].heads, 1)
    states = length * wide * (8 * (layers + vectors) + 8 * layers + 8 * vectors)
    relations = 8 * length * length * heads * (vectors + 2 * (vectors > 0))
    asked = cost_model.activation_bytes(_widest_layer(shapes), length=length, **_per_row(teacher, precision))
    row = states + relations + asked
    # Its weights were rounded before training began, and are among what is held by then.
    return Demand(row=row, row_again=row, answers=2 * wide * tokens * (layers + vectors))


def of_rounding(linears: Iterable[Any], *, length: int) -> Demand:
    """What computing linear layers as if quantized takes more: inputs within range and rounded, and rounded weights."""
    weights = [linear.weight for linear in linears]
    row = 2.0 * 4 * length * sum(weight.shape[1] for weight in weights)
    return Demand(row=row, row_again=row, once=4.0 * sum(weight.numel() for weight in weights))

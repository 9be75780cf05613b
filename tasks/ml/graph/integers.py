"""Integer linear layers as operators of ONNX Runtime: scaled as they run, scaled statically, and with 4-bit weights.

The counterparts of ``simulation.SimulatedLinear``, with the same codes and scales; they can be exported and not run.
Of what the runtime has for a static scale, ``QuantizeLinear`` and ``MatMulIntegerToFloat`` are what runs fastest on a
CPU: on (432, 384) → 768 one thread takes 645 µs, with ``QLinearMatMul`` and the dequantization of its output 734, where
the runtime itself fuses pairs of quantize and dequantize nodes 670, and 682 with ``DynamicQuantizeMatMul``.
K = inputs, M = outputs, S = tokens, B = rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import nn

from tasks.ml.models import quantization_spec
from tasks.ml.quantization import simulation

CONTRIB = "com.microsoft"


def contrib(
    operator: str,
    inputs: tuple[torch.Tensor | None, ...],
    attributes: dict[str, Any] | None = None,
    *,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """What an operator of ONNX Runtime's own gives, for a graph that is exported."""
    name = f"{CONTRIB}::{operator}"
    return torch.onnx.ops.symbolic(name, inputs, attributes, dtype=dtype, shape=shape, version=1)


class IntegerWeight(nn.Module):
    """The weight of a product of integers, with its scale per output channel and its bias."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, linear: nn.Linear, how: quantization_spec.LinearScheme) -> None:
        super().__init__()
        codes, scale = simulation.quantize_weight(simulation.smoothed(linear.weight.detach(), how))
        self.register_buffer("codes", codes.T.contiguous())  # (K, M), as MatMul wants it
        self.register_buffer("scale", scale.squeeze(-1))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int8))
        self.bias = linear.bias

    def dense(self) -> torch.Tensor:
        """The weight (M, K) again. Made of constants only, it is widened once, as the runtime loads it."""
        return (self.codes.float() * self.scale).T


class DynamicLinear(IntegerWeight):
    """``DynamicQuantizeMatMul``: quantizes its input to uint8, multiplies integers, rescales and adds the bias.

    One operator for what ONNX spells in six, because at batch 1 the price of an operator counts as much as its work.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inputs = (x, self.codes, self.scale, self.zero_point, self.bias)
        return contrib("DynamicQuantizeMatMul", inputs, shape=(*x.shape[:-1], self.codes.shape[1]))


class StaticLinear(IntegerWeight):
    """``MatMulIntegerToFloat``: quantizes its input with constants, multiplies, rescales and adds the bias."""

    input_scale: torch.Tensor
    input_zero_point: torch.Tensor

    def __init__(self, linear: nn.Linear, how: quantization_spec.LinearScheme) -> None:
        super().__init__(linear, how)
        self.register_buffer("input_scale", torch.tensor(how.scale))
        self.register_buffer("input_zero_point", torch.tensor(how.zero_point, dtype=torch.uint8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        quantized = torch.onnx.ops.symbolic(
            "QuantizeLinear",
            (x, self.input_scale, self.input_zero_point),
            dtype=torch.uint8,
            shape=x.shape,
        )
        scales, zero_points = (self.input_scale, self.scale), (self.input_zero_point, self.zero_point)
        inputs = (quantized, self.codes, *scales, *zero_points, self.bias)
        return contrib("MatMulIntegerToFloat", inputs, shape=(*x.shape[:-1], self.codes.shape[1]))


def two_to_a_byte(codes: torch.Tensor) -> torch.Tensor:
    """Packs 4-bit codes as operators read them, with zero at 8 and low bits first: −8…7 (…, K) → uint8 (…, K / 2)."""
    unsigned = (codes + 8).to(torch.uint8)
    return unsigned[..., 0::2] | (unsigned[..., 1::2] << 4)


class BlockLinear(nn.Module):
    """``MatMulNBits``: 4-bit weights with a scale per block of a row, two codes to a byte, and an int8 input."""

    packed = True
    codes: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear, how: quantization_spec.LinearScheme, block_size: int) -> None:
        super().__init__()
        weight = simulation.smoothed(linear.weight.detach(), how)
        rows, self.columns = weight.shape
        padded = F.pad(weight, (0, -self.columns % block_size))
        codes, scale = simulation.quantize_blocks(padded, block_size)
        self.register_buffer("codes", two_to_a_byte(codes.reshape(rows, -1, block_size)))
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        self.block_size = block_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.codes.shape[0]
        inputs = (x, self.codes, self.scale, None, None, self.bias)
        how = {"K": self.columns, "N": rows, "bits": 4, "block_size": self.block_size, "accuracy_level": 4}
        return contrib("MatMulNBits", inputs, how, shape=(*x.shape[:-1], rows))


class SmoothedLinear(nn.Module):
    """Divides the channels of its input, as the weight of the layer within expects it."""

    factor: torch.Tensor

    def __init__(self, linear: nn.Module, how: quantization_spec.LinearScheme) -> None:
        super().__init__()
        self.linear, self.bias = linear, linear.bias
        self.packed = getattr(linear, "packed", False)
        self.register_buffer("factor", 1 / torch.tensor(how.smoothing))

    def dense(self) -> torch.Tensor:
        """The weight (M, K) that applies to the input as it is."""
        return self.linear.dense() * self.factor  # type: ignore[operator]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x * self.factor)


CONSTANTS = {"DynamicQuantizeMatMul": (1, 2, 3, 4), "MatMulIntegerToFloat": (1, 3, 5, 6)}
"""Where an integer product has its codes, scale, zero point and bias among its inputs."""


def pack_attention(graph: ir.Graph) -> None:
    """Takes the three integer projections in front of an attention operator into it: ``QAttention``.

    Their common input is then quantized once, one product of width 3·N·D replaces three, and no head is transposed:
    96 µs for (27, 384) → 9 heads on one core, instead of 117.
    """
    for node in list(graph):
        if (node.domain, node.op_type) != (CONTRIB, "MultiHeadAttention"):
            continue
        products = [value.producer() if value is not None else None for value in node.inputs[:3]]
        readings = {_reading(product) for product in products}
        if len(readings) == 1 and None not in readings:
            _pack(graph, node, products)  # type: ignore[arg-type]


def _reading(product: ir.Node | None) -> tuple[object, ...] | None:
    """What products must share to become one: operator, width, and the input with the scale that is given for it."""
    if product is None or product.op_type not in CONSTANTS or None in product.inputs[1:] or len(product.inputs) < 5:
        return None
    reading = (product.op_type, _array(product.inputs[1]).shape)
    if product.op_type == "DynamicQuantizeMatMul":
        return *reading, product.inputs[0]
    value, scale, zero_point = _quantizer(product).inputs
    return *reading, value, float(_array(scale)), int(_array(zero_point))


def _quantizer(product: ir.Node) -> ir.Node:
    """The node that quantizes the input of a statically scaled product."""
    source = product.inputs[0]
    quantizer = source.producer() if source is not None else None
    assert quantizer is not None
    assert quantizer.op_type == "QuantizeLinear"
    return quantizer


def _array(value: ir.Value | None) -> np.ndarray:
    constant = ir.convenience.get_const_tensor(value) if value is not None else None
    assert constant is not None, "codes, scales and biases of lowered layers are constants"
    return constant.numpy()


def _pack(graph: ir.Graph, node: ir.Node, products: list[ir.Node]) -> None:
    """Replaces an attention node and its projections by one node, and their quantizations by one."""
    first = products[0]
    name = str(first.inputs[1].name).removesuffix(".codes").rpartition(".")[0]  # type: ignore[union-attr]
    at_codes, at_scale, at_zero_point, at_bias = CONSTANTS[first.op_type]
    codes, scale, bias = (
        _initializer(graph, f"{name}.qkv.{part}", np.concatenate([_array(one.inputs[at]) for one in products], axis=-1))
        for part, at in (("codes", at_codes), ("scale", at_scale), ("bias", at_bias))
    )
    if first.op_type == "DynamicQuantizeMatMul":
        quantizer = ir.node("DynamicQuantizeLinear", [first.inputs[0]], num_outputs=3)
        graph.insert_before(node, quantizer)
        x, x_scale, x_zero_point = quantizer.outputs
    else:
        quantizer = _quantizer(first)
        x, x_scale, x_zero_point = quantizer.outputs[0], *quantizer.inputs[1:]  # type: ignore[assignment]
    attention = ir.node(
        "QAttention",
        [x, codes, bias, x_scale, scale, node.inputs[4], x_zero_point, first.inputs[at_zero_point]],
        attributes={"num_heads": node.attributes["num_heads"], "scale": node.attributes["scale"]},
        domain=CONTRIB,
    )
    graph.insert_before(node, attention)
    node.outputs[0].replace_all_uses_with(attention.outputs[0])
    graph.remove(node, safe=True)


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    if name in graph.initializers:  # equal layers share their constants, and the name is made of one's
        name = f"{name}.{len(graph.initializers)}"
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value

"""Integer linear layers beside dynamic ones, as operators of ONNX Runtime: scaled statically, and with 4-bit weights.

The counterparts of ``quantization.SimulatedLinear``, with the same codes and scales; they can be exported and not run.
Of what the runtime has for a static scale, ``QuantizeLinear`` and ``MatMulIntegerToFloat`` are what runs fastest on a
CPU: on (432, 384) → 768 one thread takes 645 µs, with ``QLinearMatMul`` and the dequantization of its output 734, where
the runtime itself fuses pairs of quantize and dequantize nodes 670, and 682 with ``DynamicQuantizeMatMul``.
K = inputs, M = outputs, S = tokens, B = rows.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import nn

from tasks.ml import quantization

CONTRIB = "com.microsoft"


class StaticLinear(nn.Module):
    """Quantizes its input with constants, multiplies integers, rescales and adds the bias."""

    codes: torch.Tensor
    scale: torch.Tensor
    input_scale: torch.Tensor
    input_zero_point: torch.Tensor

    def __init__(self, linear: nn.Linear, how: quantization.LinearScheme) -> None:
        super().__init__()
        codes, scale = quantization.quantize_rows(quantization.smoothed(linear.weight.detach(), how))
        self.register_buffer("codes", codes.T.contiguous())  # (K, M), as MatMul wants it
        self.register_buffer("scale", scale.squeeze(-1))
        self.register_buffer("input_scale", torch.tensor(how.scale))
        self.register_buffer("input_zero_point", torch.tensor(how.zero_point, dtype=torch.uint8))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        quantized = torch.onnx.ops.symbolic(
            "QuantizeLinear",
            (x, self.input_scale, self.input_zero_point),
            dtype=torch.uint8,
            shape=x.shape,
        )
        return torch.onnx.ops.symbolic(
            "com.microsoft::MatMulIntegerToFloat",
            (quantized, self.codes, self.input_scale, self.scale, self.input_zero_point, None, self.bias),
            dtype=torch.float32,
            shape=(*x.shape[:-1], self.codes.shape[1]),
            version=1,
        )

    def dense(self) -> torch.Tensor:
        """The weight (M, K) again, made of constants only."""
        return (self.codes.float() * self.scale).T


class BlockLinear(nn.Module):
    """``MatMulNBits``: 4-bit weights with a scale per block of a row, two codes to a byte, and an int8 input."""

    packed = True
    codes: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear, how: quantization.LinearScheme, block_size: int) -> None:
        super().__init__()
        weight = quantization.smoothed(linear.weight.detach(), how)
        rows, self.columns = weight.shape
        padded = F.pad(weight, (0, -self.columns % block_size))
        codes, scale = quantization.quantize_blocks(padded, block_size)
        # The operator reads uint8 as unsigned with zero point 8, low bits first.
        unsigned = (codes + 8).to(torch.uint8).reshape(rows, -1, block_size)
        self.register_buffer("codes", unsigned[..., 0::2] | (unsigned[..., 1::2] << 4))
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        self.block_size = block_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.codes.shape[0]
        return torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            (x, self.codes, self.scale, None, None, self.bias),
            {"K": self.columns, "N": rows, "bits": 4, "block_size": self.block_size, "accuracy_level": 4},
            dtype=torch.float32,
            shape=(*x.shape[:-1], rows),
            version=1,
        )


class SmoothedLinear(nn.Module):
    """Divides the channels of its input, as the weight of the layer within expects it."""

    factor: torch.Tensor

    def __init__(self, linear: nn.Module, how: quantization.LinearScheme) -> None:
        super().__init__()
        self.linear, self.bias = linear, linear.bias
        self.packed = getattr(linear, "packed", False)
        self.register_buffer("factor", 1 / torch.tensor(how.smoothing))

    def dense(self) -> torch.Tensor:
        """The weight (M, K) that applies to the input as it is."""
        return self.linear.dense() * self.factor  # type: ignore[operator]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x * self.factor)


def share_smoothing(graph: ir.Graph) -> None:
    """Makes layers that read the same divided by the same read one product: query, key and value of a layer do."""
    seen: dict[tuple[ir.Value | None, bytes], ir.Value] = {}
    for node in list(graph):
        if node.op_type != "Mul" or node.inputs[1] is None:
            continue
        factor = ir.convenience.get_const_tensor(node.inputs[1])
        if factor is None or "factor" not in str(factor.name):
            continue
        first = seen.setdefault((node.inputs[0], factor.numpy().tobytes()), node.outputs[0])
        if first is not node.outputs[0]:
            node.outputs[0].replace_all_uses_with(first)


def pack_attention(graph: ir.Graph) -> None:
    """Takes three statically scaled projections of one input into their attention operator: ``QAttention``.

    As ``onnx_fusion.pack_attention`` does for dynamic ones; the runtime then quantizes their input once.
    """
    for node in list(graph):
        if (node.domain, node.op_type) != (CONTRIB, "MultiHeadAttention"):
            continue
        products = [value.producer() if value is not None else None for value in node.inputs[:3]]
        if any(product is None or product.op_type != "MatMulIntegerToFloat" for product in products):
            continue
        quantizers = [product.inputs[0].producer() for product in products]  # type: ignore[union-attr]
        if len({_input(one) for one in quantizers}) == 1 and len({_columns(one) for one in products}) == 1:
            _pack(graph, node, products, quantizers[0])  # type: ignore[arg-type]


def _input(quantizer: ir.Node | None) -> tuple[ir.Value | None, float, int]:
    """What a ``QuantizeLinear`` reads, and its scale and zero point."""
    assert quantizer is not None
    assert quantizer.op_type == "QuantizeLinear"
    return quantizer.inputs[0], float(_array(quantizer.inputs[1])), int(_array(quantizer.inputs[2]))


def _columns(product: ir.Node | None) -> int:
    assert product is not None
    return int(_array(product.inputs[1]).shape[1])


def _array(value: ir.Value | None) -> np.ndarray:
    constant = ir.convenience.get_const_tensor(value) if value is not None else None
    assert constant is not None, "codes, scales and biases of lowered layers are constants"
    return constant.numpy()


def _pack(graph: ir.Graph, node: ir.Node, products: list[ir.Node], quantizer: ir.Node) -> None:
    """Replaces an attention node and its projections by one node that reads what the first of them quantized."""
    name = str(products[0].inputs[1].name).removesuffix(".codes").rpartition(".")[0]  # type: ignore[union-attr]
    codes, scale, bias = (
        _initializer(graph, f"{name}.qkv.{part}", np.concatenate([_array(one.inputs[at]) for one in products], axis=-1))
        for part, at in (("codes", 1), ("scale", 3), ("bias", 6))
    )
    _, x_scale, x_zero_point = quantizer.inputs
    zero_point = _initializer(graph, "weight_zero_point", np.zeros((), np.int8))
    attention = ir.node(
        "QAttention",
        [quantizer.outputs[0], codes, bias, x_scale, scale, node.inputs[4], x_zero_point, zero_point],
        attributes={"num_heads": node.attributes["num_heads"], "scale": node.attributes["scale"]},
        domain=CONTRIB,
    )
    graph.insert_before(node, attention)
    node.outputs[0].replace_all_uses_with(attention.outputs[0])
    graph.remove(node, safe=True)


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    if name not in graph.initializers:
        graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(array, name=name)))
    return graph.initializers[name]

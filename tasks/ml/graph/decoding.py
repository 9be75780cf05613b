"""From a causal language model and its weights in blocks to an ONNX graph that reads and extends a cache.

The graph is built operator by operator, and not traced: attention with its rotation and its cache is one operator, so
are query, key and value, and a gate with what it multiplies. It has the inputs and outputs that onnxruntime-genai
knows. B = rows, S = new tokens, P = tokens in the cache, T = P + S, V = vocabulary, H = hidden, F = FFN channels,
N = heads, K = heads of keys and values, D = head size.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.graph.integers import CONTRIB
from tasks.ml.models import decoders
from tasks.ml.models.decoders import Norm
from tasks.ml.quantization import blocks as blocking
from tasks.ml.quantization.blocks import Blocks
from tasks.ml.quantization.cache_scales import Scales

OPSET = 21
SCALES_AT = 12
"""Place of a quantized cache's scales among the inputs of ``GroupQueryAttention``."""
EXACT, IN_INT8 = 0, 4
"""Accuracy levels of ``MatMulNBits``: the input as it is, or in int8, block by block."""
SILU, TANH_GELU = ("silu", "swish"), ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


def past(index: int) -> tuple[str, str]:
    """Names of a layer's cached keys and values (B, K, P, D), as onnxruntime-genai calls them."""
    return f"past_key_values.{index}.key", f"past_key_values.{index}.value"


def present(index: int) -> tuple[str, str]:
    """Names of the same with the new tokens (B, K, T, D)."""
    return f"present.{index}.key", f"present.{index}.value"


class _Graph:
    """Operators and constants as they are put down, each named by what it is of."""

    def __init__(self) -> None:
        self.tape = ir.tape.Tape()
        self.constants: dict[str, ir.Value] = {}

    def constant(self, name: str, value: torch.Tensor | np.ndarray) -> ir.Value:
        """A constant, put down once under its name."""
        array = value.contiguous().numpy() if isinstance(value, torch.Tensor) else value
        if name not in self.constants:
            self.constants[name] = self.tape.initializer(ir.tensor(array, name=name), name)
            return self.constants[name]
        stored = self.constants[name].const_value
        assert stored is not None
        assert np.array_equal(stored.numpy(), array), f"{name} is two things"
        return self.constants[name]

    def op(
        self, operator: str, *inputs: ir.Value | None, domain: str = "", name: str = "", **attributes: Any
    ) -> ir.Value:
        found = self.tape.op(operator, inputs, attributes, domain=domain)
        if name:
            found.name = name
        return found

    def ops(
        self, operator: str, *inputs: ir.Value | None, names: Sequence[str], domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        outputs = [ir.Value(name=name) for name in names]  # an output without a name is not computed
        return self.tape.op_multi_out(operator, inputs, attributes, outputs=outputs, domain=domain)


class Builder:
    """Builds the graph of one model.

    Args:
        weights: blocks of linear layers by qualified name; a layer that is not named is multiplied in fp32.
        head: blocks of the logits' weight (V, H), which the token table shares where the two are tied.
        table: blocks of the token table, where it is in blocks of its own.
        cache_scales: of every layer, for a cache in int8.
        length: tokens of the longest text, cached ones included.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        weights: Mapping[str, Blocks],
        head: Blocks | None = None,
        table: Blocks | None = None,
        cache_scales: Sequence[Scales] = (),
        length: int = 0,
    ) -> None:
        self.model, self.family = model, decoders.of_model(model)
        self.weights, self.head, self.table = weights, head, table
        self.cache_scales = cache_scales
        self.cache_type = ir.DataType.INT8 if cache_scales else ir.DataType.FLOAT
        config: Any = model.config
        self.hidden, self.length = config.hidden_size, length or config.max_position_embeddings
        self.attention = decoders.attention(model)
        self.graph = _Graph()

    def build(self) -> ir.Model:
        """The graph with inputs ``input_ids`` (B, S), ``attention_mask`` (B, T) and each layer's past, and outputs
        ``logits`` (B, S, V) and each layer's present.

        Rows of different lengths are padded on the right: the operator takes the first tokens of the cache for a row's
        own, as many as its mask counts.
        """
        family, layers = self.family, self.family.layer_list(self.model)
        ids = _value("input_ids", ir.DataType.INT64, ("batch", "sequence"))
        mask = _value("attention_mask", ir.DataType.INT64, ("batch", "total"))
        cache = ("batch", self.attention.kv_heads, "past", self.attention.head_size)
        pasts = [[_value(name, self.cache_type, cache) for name in past(index)] for index in range(len(layers))]
        self._count(mask)
        residual = self._embedded(ids, mask)
        normed = self._norm("attention_norm.0", residual, family.norm(layers[0], family.attention_norm))
        presents: list[ir.Value] = []
        for index, layer in enumerate(layers):
            attended, *kept = self._attention(index, layer, normed, pasts[index])
            presents += kept
            ffn_norm = family.norm(layer, family.ffn_norm)
            residual, normed = self._added(f"ffn_norm.{index}", residual, attended, ffn_norm)
            out = self._ffn(index, normed)
            last = index == len(layers) - 1
            after = (
                family.norm(self.model.base_model, family.final_norm)  # type: ignore[arg-type]
                if last
                else family.norm(layers[index + 1], family.attention_norm)
            )
            residual, normed = self._added(
                "final_norm" if last else f"attention_norm.{index + 1}", residual, out, after
            )
        logits = self._logits(normed)
        logits.dtype, logits.shape = ir.DataType.FLOAT, ir.Shape(("batch", "sequence", len(family.head(self.model))))
        return ir.Model(
            ir.Graph(
                [ids, mask, *(value for pair in pasts for value in pair)],
                [logits, *presents],
                nodes=self.graph.tape.nodes,
                initializers=self.graph.tape.initializers,
                opset_imports={"": OPSET, CONTRIB: 1},
                name="main_graph",
            ),
            ir_version=10,
            producer_name="featherweight",
        )

    def _count(self, mask: ir.Value) -> None:
        """Tokens of each row and of the longest, as attention wants them."""
        put, one = self.graph.op, self.graph.constant("one", np.array([1], dtype=np.int64))
        lengths = put("Sub", put("ReduceSum", mask, one, keepdims=0), one)
        self.last_places = put("Cast", lengths, to=ir.DataType.INT32.value)  # (B,): place of each row's last token
        total = put("Gather", put("Shape", mask), self.graph.constant("axis", np.array(1, dtype=np.int64)))
        self.total = put("Cast", total, to=ir.DataType.INT32.value)

    def _embedded(self, ids: ir.Value, mask: ir.Value) -> ir.Value:
        put = self.graph.op
        table = self.table or (self.head if self._tied else None)
        if table is not None and table.codes[0].numel() != self.hidden:
            raise FeatherweightError(
                f"quantization: block_size {table.format.block_size} does not divide the {self.hidden} columns of the "
                "token table"
            )
        if table is None:
            rows = put("Gather", self.graph.constant("table", self.family.table(self.model).float()), ids)
        else:
            name = "table" if self.table else "head"
            rows = put(
                "GatherBlockQuantized", self._codes(name, table, flat=True), ids, *self._ranges(name, table),
                domain=CONTRIB, gather_axis=0, quantize_axis=1,
                bits=table.format.bits, block_size=table.format.block_size,
            )  # fmt: skip
        if self.family.scales_embeddings:
            rows = put("Mul", rows, self.graph.constant("embedding_scale", np.array(self.hidden**0.5, np.float32)))
        if self.family.positions:
            rows = put("Add", rows, self._positions(ids, mask))
        return rows

    def _positions(self, ids: ir.Value, mask: ir.Value) -> ir.Value:
        """Learned positions of the new tokens: as many real ones as come before them."""
        put, constant = self.graph.op, self.graph.constant
        one = constant("axis", np.array(1, dtype=np.int64))
        counted = put("CumSum", mask, one)
        places = put("Max", put("Sub", counted, one), constant("nought", np.array(0, dtype=np.int64)))
        start = put("Sub", put("Shape", mask, start=1), put("Shape", ids, start=1))
        ends = constant("end", np.array([np.iinfo(np.int64).max]))
        new = put("Slice", places, start, ends, constant("one", np.array([1], dtype=np.int64)))
        table: Any = self.model.base_model.get_submodule(self.family.positions)  # type: ignore[union-attr]
        return put("Gather", constant("positions", table.weight.detach().float()), new)

    @functools.cached_property
    def _rotations(self) -> tuple[torch.Tensor, torch.Tensor]:
        return decoders.rotations(self.model, self.length)

    @property
    def _tied(self) -> bool:
        return self.family.head(self.model).data_ptr() == self.family.table(self.model).data_ptr()

    def _norm(self, name: str, x: ir.Value, norm: Norm) -> ir.Value:
        weight = self.graph.constant(f"{name}.weight", norm.weight.float())
        if norm.bias is None:
            return self.graph.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=norm.epsilon, stash_type=1)
        bias = self.graph.constant(f"{name}.bias", norm.bias.float())
        return self.graph.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.epsilon)

    def _added(self, name: str, residual: ir.Value, x: ir.Value, norm: Norm) -> tuple[ir.Value, ir.Value]:
        """What is added to the residual stream, and its norm."""
        inputs = [x, residual, self.graph.constant(f"{name}.weight", norm.weight.float())]
        operator = "SkipSimplifiedLayerNormalization"
        if norm.bias is not None:
            operator = "SkipLayerNormalization"
            inputs.append(self.graph.constant(f"{name}.bias", norm.bias.float()))
        names = (f"{name}.out", "", "", f"{name}.sum")
        normed, _, _, total = self.graph.ops(operator, *inputs, names=names, domain=CONTRIB, epsilon=norm.epsilon)
        return total, normed

    def _linear(self, index: int, parts: Sequence[str], x: ir.Value) -> ir.Value:
        """The outputs of several linear layers, one after the other."""
        found = [self.family.projection(self.model, index, part) for part in parts]
        names = [one.name for one in found]
        label = f"layers.{index}.{'+'.join(parts)}"
        biases = [one.bias for one in found if one.bias is not None]
        bias = self.graph.constant(f"{label}.bias", torch.cat(biases).float()) if biases else None
        known = [name in self.weights for name in names]
        if not any(known):
            weight = torch.cat([one.weight for one in found]).float()
            out = self._dense(label, weight, x)
            return out if bias is None else self.graph.op("Add", out, bias)
        if not all(known):
            raise FeatherweightError(f"quantization: {', '.join(names)} are one product, and only some are in blocks")
        try:
            weights = blocking.joined([self.weights[name] for name in names])
        except ValueError as error:
            raise FeatherweightError(f"quantization: {', '.join(names)} are one product, with {error}") from None
        return self._blocks(label, weights, x, bias)

    def _dense(self, label: str, weight: torch.Tensor, x: ir.Value) -> ir.Value:
        constant = self.graph.constant(f"{label}.weight", weight)
        return self.graph.op("FusedMatMul", x, constant, domain=CONTRIB, transB=1)

    def _blocks(self, label: str, weight: Blocks, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        scales, *zeros = self._ranges(label, weight)
        inputs: list[ir.Value | None] = [x, self._codes(label, weight), scales]
        inputs += zeros
        if bias is not None:  # the sixth input, after zero points and an order of columns
            inputs += [None] * (5 - len(inputs)) + [bias]
        outputs = len(weight.codes)
        form = weight.format
        return self.graph.op(
            "MatMulNBits", *inputs, domain=CONTRIB,
            K=weight.inputs, N=outputs, bits=form.bits, block_size=form.block_size,
            accuracy_level=IN_INT8 if form.rounds_inputs else EXACT,
        )  # fmt: skip

    def _codes(self, label: str, weight: Blocks, *, flat: bool = False) -> ir.Value:
        """Codes (O, G, bytes of a block); of a table, (O, bytes of a row): the same bytes, which a file has once."""
        codes = self.graph.constant(f"{label}.codes", weight.packed_codes())
        if not flat:
            return codes
        shape = self.graph.constant(f"{label}.row", np.array([len(weight.codes), -1], dtype=np.int64))
        return self.graph.op("Reshape", codes, shape)

    def _ranges(self, label: str, weight: Blocks) -> list[ir.Value]:
        scales = self.graph.constant(f"{label}.scales", weight.scales)
        if weight.format.symmetric:
            return [scales]
        return [scales, self.graph.constant(f"{label}.zeros", weight.packed_zeros())]

    def _attention(
        self, index: int, layer: nn.Module, x: ir.Value, cached: Sequence[ir.Value]
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        heads, kv_heads, size = self.attention
        projected = self._linear(index, self.family.qkv, x)
        query: ir.Value = projected
        key: ir.Value | None = None
        value: ir.Value | None = None
        if self.family.query_norm:
            query, key, value = self._apart(index, layer, projected)
        tables: list[ir.Value] = []
        if not self.family.positions:
            tables = [self.graph.constant(*one) for one in zip(("cos", "sin"), self._rotations, strict=True)]
        inputs = [query, key, value, *cached, self.last_places, self.total, *tables]
        how: dict[str, int | str] = {}
        if self.cache_scales:
            # After the rotation's tables come positions, a bias and a sink, of which there are none.
            inputs += [None] * (SCALES_AT - len(inputs))
            for name, scales in zip(("keys", "values"), self.cache_scales[index], strict=True):
                inputs.append(self.graph.constant(f"layers.{index}.{name}.scales", scales.float()))
            how = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        names = (f"layers.{index}.attended", *present(index))
        found = self.graph.ops(
            "GroupQueryAttention", *inputs, names=names, domain=CONTRIB,
            num_heads=heads, kv_num_heads=kv_heads, scale=decoders.scale(self.model, index),
            do_rotary=int(bool(tables)), rotary_interleaved=0,
            local_window_size=decoders.window(self.model, index), **how,
        )  # fmt: skip
        attended, *kept = found
        for one in kept:
            one.dtype, one.shape = self.cache_type, ir.Shape(("batch", kv_heads, "total", size))
        return self._linear(index, (self.family.attention_output,), attended), kept[0], kept[1]

    def _apart(self, index: int, layer: nn.Module, projected: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Query, key and value where each head's query and key have norms, which the operator has none of on CPUs."""
        heads, kv_heads, size = self.attention
        widths = np.array([heads * size, kv_heads * size, kv_heads * size], dtype=np.int64)
        names = [f"layers.{index}.{name}" for name in ("query", "key", "value")]
        query, key, value = self.graph.ops(
            "Split", projected, self.graph.constant("widths", widths), names=names, axis=-1
        )
        by_head = self.graph.constant("by_head", np.array([0, 0, -1, size], dtype=np.int64))
        together = self.graph.constant("together", np.array([0, 0, -1], dtype=np.int64))

        def normed(x: ir.Value, name: str) -> ir.Value:
            one = self.graph.op("Reshape", x, by_head)
            found = self._norm(f"layers.{index}.{name.rpartition('.')[2]}", one, self.family.norm(layer, name))
            return self.graph.op("Reshape", found, together)

        return normed(query, self.family.query_norm), normed(key, self.family.key_norm), value

    def _ffn(self, index: int, x: ir.Value) -> ir.Value:
        into = self._linear(index, self.family.ffn_in, x)
        if len(self.family.ffn_in) == 1:
            out = self._activated(into)
        else:
            names = (f"layers.{index}.gate", f"layers.{index}.up")
            gate, up = self.graph.ops("Split", into, names=names, axis=-1, num_outputs=2)
            out = self.graph.op("Mul", self._activated(gate), up)
        return self._linear(index, (self.family.ffn_down,), out)

    def _activated(self, x: ir.Value) -> ir.Value:
        name = decoders.activation(self.model)
        if name in SILU:  # x · sigmoid(x)
            return self.graph.op("QuickGelu", x, domain=CONTRIB, alpha=1.0)
        if name in TANH_GELU:
            return self.graph.op("Gelu", x, approximate="tanh")
        if name == "gelu":
            return self.graph.op("Gelu", x)
        raise FeatherweightError(f"export: activation {name!r} has no operator; it has for silu and gelu")

    def _logits(self, x: ir.Value) -> ir.Value:
        if self.head is not None:
            logits = self._blocks("head", self.head, x, None)
        else:
            name = "table" if self._tied and self.table is None else "head.weight"
            constant = self.graph.constant(name, self.family.head(self.model).float())
            logits = self.graph.op("FusedMatMul", x, constant, domain=CONTRIB, transB=1)
        logits.name = "logits"
        return logits


def _value(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))

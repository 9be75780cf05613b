"""Each pass changes the graph and nothing that it computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tasks.ml.graph import fusion


def parse(body: str) -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]> g {body}'
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


def run(model: ir.Model, **feed: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, feed
    )[0]


def executed(model: ir.Model, folder: Path) -> list[str]:
    """Operators that the runtime makes of a graph."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3  # that the file suits this machine only is no concern here
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_reshapes_to_heads_and_back_are_dropped() -> None:
    model = parse(
        """(float[2, 3, 8] x) => (float[2, 3, 8] y)
        <int64[4] heads = {2, 3, 2, 4}, int64[3] flat = {2, 3, 8}>
        { a = Relu(x)  b = Reshape(a, heads)  c = Reshape(b, flat)  y = Neg(c) }"""
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    expected = run(model, x=x)
    fusion.fuse(model, for_cpu=True)
    assert operators(model) == ["Relu", "Neg"]
    assert np.array_equal(run(model, x=x), expected)


def test_reshapes_that_end_elsewhere_stay() -> None:
    model = parse(
        """(float[2, 3, 8] x) => (float[3, 2, 8] y)
        <int64[4] heads = {2, 3, 2, 4}, int64[3] flat = {3, 2, 8}>
        { a = Relu(x)  b = Reshape(a, heads)  c = Reshape(b, flat)  y = Neg(c) }"""
    )
    fusion.fuse(model, for_cpu=True)
    assert operators(model) == ["Relu", "Reshape", "Reshape", "Neg"]


@pytest.mark.parametrize(("constant", "left"), [("0.0", ["Relu", "Neg"]), ("0.5", ["Relu", "Add", "Neg"])])
def test_only_zero_is_not_added(constant: str, left: list[str]) -> None:
    model = parse(
        f"""(float[4] x) => (float[4] y) <float nothing = {{{constant}}}>
        {{ a = Relu(x)  b = Add(a, nothing)  y = Neg(b) }}"""
    )
    fusion.fuse(model, for_cpu=True)
    assert operators(model) == left


@pytest.mark.parametrize(("other", "packed"), [("x", True), ("r", False)])
def test_attention_over_projections_of_different_inputs_is_not_packed(other: str, packed: bool) -> None:
    node, ones = "com.microsoft.DynamicQuantizeMatMul", ", ".join(["1"] * 8)
    model = parse(
        f"""(float[1, 3, 8] x, float[1, 3, 8] z, int32[1, 3] m) => (float[1, 3, 8] y)
        <float[8] s = {{{ones}}}, float[8] b = {{{ones}}}, uint8 n = {{128}}>
        {{ r = Relu(z)  w = Constant<value = uint8[8, 8] {{{", ".join(["129"] * 64)}}}>()
           q = {node}(x, w, s, n, b)  k = {node}({other}, w, s, n, b)  v = {node}({other}, w, s, n, b)
           a = com.microsoft.MultiHeadAttention<num_heads = 2, scale = 1.0>(q, k, v, , m)  y = Neg(a) }}"""
    )
    fusion.fuse(model, for_cpu=True)
    assert ("QAttention" in operators(model)) == packed


def test_two_layers_that_are_equal_to_the_last_bit_are_packed_as_any_others() -> None:
    node, ones = "com.microsoft.DynamicQuantizeMatMul", ", ".join(["1"] * 8)
    weights = ", ".join(["129"] * 64)

    def layer(x: str, name: str) -> str:
        products = "  ".join(
            f"{name}{part}w = Constant<value = uint8[8, 8] {{{weights}}}>()  "
            f"{name}{part} = {node}({x}, {name}{part}w, s, n, b)"
            for part in "qkv"
        )
        attention = "com.microsoft.MultiHeadAttention<num_heads = 2, scale = 1.0>"
        return f"{products}  {name} = {attention}({name}q, {name}k, {name}v, , m)"

    model = parse(
        f"""(float[1, 3, 8] x, int32[1, 3] m) => (float[1, 3, 8] y)
        <float[8] s = {{{ones}}}, float[8] b = {{{ones}}}, uint8 n = {{128}}>
        {{ {layer("x", "f")}  r = Relu(f)  {layer("r", "g")}  y = Neg(g) }}"""
    )
    fusion.fuse(model, for_cpu=True)
    assert operators(model).count("QAttention") == 2


def test_residuals_stay_out_of_norms(tmp_path: Path) -> None:
    model = parse(
        """(float[1, 3, 8] x) => (float[1, 3, 8] y)
        <float[8] scale = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] bias = {8, 7, 6, 5, 4, 3, 2, 1}>
        { a = Relu(x)  b = Add(a, x)  n = LayerNormalization<axis = -1>(b, scale, bias)  y = Add(n, x) }"""
    )
    x = np.random.default_rng(0).normal(size=(1, 3, 8)).astype(np.float32)
    expected = run(model, x=x)
    fusion.fuse(model, for_cpu=True)
    assert operators(model) == ["Relu", "Sum", "LayerNormalization", "Add"]
    assert np.allclose(run(model, x=x), expected, atol=1e-5)
    assert "SkipLayerNormalization" not in executed(model, tmp_path)


def test_residuals_are_left_to_runtimes_that_fuse_them_well() -> None:
    model = parse(
        """(float[1, 3, 8] x) => (float[1, 3, 8] y) <float[8] scale = {1, 1, 1, 1, 1, 1, 1, 1}>
        { a = Relu(x)  b = Add(a, x)  y = LayerNormalization<axis = -1>(b, scale) }"""
    )
    fusion.fuse(model, for_cpu=False)
    assert operators(model) == ["Relu", "Add", "LayerNormalization"]

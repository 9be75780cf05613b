"""What zeros in the weights are worth: bytes once compressed, and time in the runtime. O, I as in ``sparsity``."""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tasks.ml.quantization import simulation

OPSET = 20
TOKENS = 32
"""Rows of the activations that products are timed with: about a sentence."""
ROUNDS = 51


def codes(layers: Mapping[str, nn.Linear]) -> dict[str, np.ndarray]:
    """The int8 codes (O, I) that the weights are shipped as."""
    return {name: simulation.quantize_weight(layer.weight.detach())[0].numpy() for name, layer in layers.items()}


def compressed_bytes(weights: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Bytes of the codes, plain and compressed."""
    whole = b"".join(np.ascontiguousarray(code).tobytes() for code in weights.values())
    zstd = pa.Codec("zstd", compression_level=19).compress(whole, asbytes=True)
    return {"plain": len(whole), "gzip": len(zlib.compress(whole, 9)), "zstd": len(zstd)}


def products(weights: Mapping[str, np.ndarray]) -> bytes:
    """A graph of all the integer products, as they are in the shipped one: each of its own activations (S, I)."""
    nodes, inputs, outputs, initializers = [], [], [], []
    for number, code in enumerate(weights.values()):
        x, q, scale, zero, w, y = (f"{letter}{number}" for letter in ("x", "q", "s", "z", "w", "y"))
        channels_out, channels_in = code.shape
        inputs.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, ["tokens", channels_in]))
        outputs.append(helper.make_tensor_value_info(y, TensorProto.INT32, ["tokens", channels_out]))
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(code.T), w))
        nodes.append(helper.make_node("DynamicQuantizeLinear", [x], [q, scale, zero]))
        nodes.append(helper.make_node("MatMulInteger", [q, w, zero], [y]))
    graph = helper.make_graph(nodes, "products", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = min(model.ir_version, 10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def latency_ratio(dense: Mapping[str, np.ndarray], sparse: Mapping[str, np.ndarray]) -> float:
    """Median time of all products with sparse weights over that with dense ones, on one CPU thread, in turns."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    generator = np.random.default_rng(0)
    feed = {
        f"x{number}": generator.standard_normal((TOKENS, code.shape[1])).astype(np.float32)
        for number, code in enumerate(dense.values())
    }
    sessions = [
        ort.InferenceSession(products(weights), options, providers=["CPUExecutionProvider"])
        for weights in (dense, sparse)
    ]
    seconds: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for session, taken in zip(sessions, seconds, strict=True):
            session.run(None, feed)  # brings its weights back into the cache
            start = time.perf_counter()
            session.run(None, feed)
            taken.append(time.perf_counter() - start)
    return statistics.median(seconds[1]) / statistics.median(seconds[0])


def gain(dense: Mapping[str, nn.Linear], sparse: Mapping[str, nn.Linear]) -> dict[str, Any]:
    """Compares the linear layers of a model without and with zeros.

    Returns:
        ``int8_bytes`` of both, and ``latency_ratio`` of their products in ONNX Runtime: sparse / dense. The runtime has
        no kernels for zeros in such matrices, so a ratio other than 1 is noise.
    """
    before, after = codes(dense), codes(sparse)
    return {
        "int8_bytes": {"dense": compressed_bytes(before), "sparse": compressed_bytes(after)},
        "latency_ratio": latency_ratio(before, after),
    }

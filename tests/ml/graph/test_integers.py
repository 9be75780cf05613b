"""Every integer scheme computes on the runtime what its simulation computes, at shapes other than the exported one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.ml.graph import export as onnx_export
from tasks.ml.models import first_token, quantization_spec
from tasks.ml.quantization import calibration, simulation, smoothing
from tasks.ml.runtime import sessions
from tests.ml.graph.test_export import errors, export, pruned, simulated_as

ALL = 2 * 6 + 1


def batches() -> Iterator[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for length in (4, 12, 20):
        ids = torch.randint(5, 80, (6, length), generator=generator)
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def planned(scheme: str) -> quantization_spec.Spec:
    """The spec of a scheme, with ranges taken from random rows."""
    spec = quantization_spec.plan(pruned(), linears=True, scheme=scheme, token_bits=8, block_size=16)
    return calibration.calibrate(pruned(), spec, batches, method="min-max") if scheme == "int8-static" else spec


def check(spec: quantization_spec.Spec, directory: Path) -> None:
    """Rows are equal to float rounding, or, where rounding tips a code over, off by less than quantization is."""
    found = errors(simulated_as(spec), directory)
    unquantized = errors(pruned(), directory)
    assert np.median(found) < 1e-5
    assert found.max() < unquantized.max()
    assert np.median(unquantized) > 1e-4, "the graph is as exact as fp32: nothing was quantized"


def test_static_parity_and_operators(tmp_path: Path) -> None:
    spec = planned("int8-static")
    operators = export(pruned(), tmp_path, spec)
    assert operators["expected"] == {
        "QAttention": 1, "Softmax": 1, "MatMulIntegerToFloat": 8, "LayerNormalization": 5
    }  # fmt: skip
    # One quantization for the three projections of the first attention, one for every other layer, and none that is
    # dynamic; what stays in floats is the last attention's one query.
    assert operators["counts"]["QuantizeLinear"] == 1 + 8
    assert operators["counts"]["MatMul"] == 4
    assert not operators["counts"].keys() & {"DynamicQuantizeLinear", "DequantizeLinear"}
    check(spec, tmp_path)


def test_static_rows_do_not_depend_on_their_company(tmp_path: Path) -> None:
    export(pruned(), tmp_path, planned("int8-static"))
    session = sessions.open_session(tmp_path / onnx_export.MODEL, provider=sessions.CPU, threads=1)
    rows = np.random.default_rng(1).integers(5, 80, (8, 11)).tolist()
    together = sessions.logits(session, rows, pad_id=1, batch_size=8)
    alone = sessions.logits(session, rows, pad_id=1, batch_size=1)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


def test_int4_parity_and_operators(tmp_path: Path) -> None:
    spec = planned("int4")
    operators = export(pruned(), tmp_path, spec)
    assert operators["expected"] == {"MultiHeadAttention": 2, "MatMulNBits": ALL, "LayerNormalization": 5}
    check(spec, tmp_path)


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-static", "int4"])
def test_smoothed_parity_and_operators(tmp_path: Path, scheme: str) -> None:
    spec = quantization_spec.plan(pruned(), linears=True, scheme=scheme, token_bits=32, block_size=16)
    model = copy.deepcopy(pruned())
    spec = smoothing.smooth(model, spec, batches, alpha=0.5)
    if scheme == "int8-static":
        spec = calibration.calibrate(model, spec, batches, method="min-max")
    operators = export(model, tmp_path, spec)
    assert operators["counts"].get("QAttention", 0) == (0 if scheme == "int4" else 1), "projections were not packed"
    simulated = copy.deepcopy(model)
    simulation.simulate(simulated, spec)
    first_token.narrow(simulated)
    found = errors(simulated, tmp_path)
    assert np.median(found) < 1e-5
    assert np.median(errors(pruned(), tmp_path)) > 1e-4


def test_layers_of_different_schemes_in_one_graph(tmp_path: Path) -> None:
    static, blocks, dynamic = (planned(name).linears for name in ("int8-static", "int4", "int8-dynamic"))
    chosen: dict[str, quantization_spec.LinearScheme] = {}
    for name in dynamic:
        if ".0.attention.self" in name:
            chosen[name] = static[name]
        elif ".1.attention.self.query" in name:
            continue  # stays fp32
        elif "dense" in name and ".0." in name:
            chosen[name] = blocks[name]
        else:
            chosen[name] = dynamic[name]
    spec = replace(planned("int8-dynamic"), linears=chosen)
    operators = export(pruned(), tmp_path, spec)
    assert operators["expected"] == {
        "QAttention": 1,
        "Softmax": 1,
        "MatMulNBits": 3,
        "DynamicQuantizeMatMul": 4,
        "LayerNormalization": 5,
    }
    check(spec, tmp_path)

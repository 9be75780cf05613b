"""Every integer scheme computes on the runtime what its simulation computes, at shapes other than the exported one,
and on processors that multiply bytes otherwise: with VNNI and without.
"""

from __future__ import annotations

import copy
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tasks.ml.graph import export as onnx_export
from tasks.ml.models import quantization_spec
from tasks.ml.quantization import calibration, simulation, smoothing
from tasks.ml.runtime import sessions
from tests import needs
from tests.ml.exporting import (
    Exported,
    answered,
    batches,
    errors,
    export,
    planned,
    pruned,
    require_finite_without_tokens,
    simulated_as,
)
from tests.ml.graph import answers_elsewhere

SCHEMES = ("int8-dynamic", "int8-static", "int4")
ALL = 2 * 6 + 1


def check(spec: quantization_spec.Spec, directory: Path) -> None:
    """Rows are equal to float rounding, or, where rounding tips a code over, off by less than quantization is."""
    found = errors(simulated_as(spec), directory)
    unquantized = errors(pruned(), directory)
    assert np.median(found) < 1e-5
    assert found.max() < unquantized.max()
    assert np.median(unquantized) > 1e-4, "the graph is as exact as fp32: nothing was quantized"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parity(exported: Callable[[str], Exported], scheme: str) -> None:
    graph = exported(scheme)
    check(graph.spec, graph.folder)
    require_finite_without_tokens(graph.folder)


def test_dynamic_operators(exported: Callable[[str], Exported]) -> None:
    operators = exported("int8-dynamic").operators
    assert operators["expected"] == {
        "QAttention": 1, "Softmax": 1, "DynamicQuantizeMatMul": 8, "LayerNormalization": 5
    }  # fmt: skip
    assert operators["expected"].items() <= operators["counts"].items()
    assert operators["counts"]["MatMul"] == 4, "of the last layer's one query, and no other"


def test_static_operators(exported: Callable[[str], Exported]) -> None:
    operators = exported("int8-static").operators
    assert operators["expected"] == {
        "QAttention": 1, "Softmax": 1, "MatMulIntegerToFloat": 8, "LayerNormalization": 5
    }  # fmt: skip
    # One quantization for the three projections of the first attention, one for every other layer, and none that is
    # dynamic; what stays in floats is the last attention's one query.
    assert operators["counts"]["QuantizeLinear"] == 1 + 8
    assert operators["counts"]["MatMul"] == 4
    assert not operators["counts"].keys() & {"DynamicQuantizeLinear", "DequantizeLinear"}


def test_operators_of_blocks(exported: Callable[[str], Exported]) -> None:
    expected = {"MultiHeadAttention": 2, "MatMulNBits": ALL, "LayerNormalization": 5}
    assert exported("int4").operators["expected"] == expected


def test_static_rows_do_not_depend_on_their_company(exported: Callable[[str], Exported]) -> None:
    path = exported("int8-static").folder / onnx_export.MODEL
    session = sessions.open_session(path, provider=sessions.CPU, threads=1)
    rows = np.random.default_rng(1).integers(5, 80, (8, 11)).tolist()
    together = sessions.logits(session, rows, pad_id=1, batch_size=8)
    alone = sessions.logits(session, rows, pad_id=1, batch_size=1)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors' kernels have no such pairs")
def test_a_processor_without_vnni_answers_what_the_simulation_says(exported: Callable[[str], Exported]) -> None:
    needs.debian("qemu-user", shutil.which(answers_elsewhere.HASWELL[0]))
    generator = np.random.default_rng(0)
    rows = [generator.integers(5, 80, length).tolist() for length in (31, 17, 9, 2)]
    models = {scheme: exported(scheme).folder / onnx_export.MODEL for scheme in SCHEMES}
    how = {"pad_id": 1, "batch_size": len(rows), "bounds": (simulation.PAIR_MAX, simulation.PAIR_MAX + 1)}
    answers = answers_elsewhere.ask(models, rows, emulator=answers_elsewhere.HASWELL, **how)
    exact, beyond = answers["wrong"]
    assert beyond > 0, "the emulated processor does not do what this test is about"
    assert exact == 0
    feed = sessions.feed(rows, pad_id=1)
    for scheme in SCHEMES:
        expected = answered(simulated_as(exported(scheme).spec), feed)
        for kind, logits in answers[scheme].items():
            assert np.median(np.abs(logits - expected)) < 1e-4, (scheme, kind)
        here = sessions.open_session(models[scheme], provider=sessions.CPU, threads=1)
        assert np.median(np.abs(answers[scheme]["ours"] - here.run(None, feed)[0])) < 1e-4


@pytest.mark.parametrize("scheme", SCHEMES)
def test_smoothed_parity_and_operators(tmp_path: Path, scheme: str) -> None:
    spec = quantization_spec.plan(pruned(), linears=True, scheme=scheme, token_bits=32, block_size=16)
    model = copy.deepcopy(pruned())
    spec = smoothing.smooth(model, spec, batches, alpha=0.5)
    if scheme == "int8-static":
        spec = calibration.calibrate(model, spec, batches, method="min-max")
    operators = export(model, tmp_path, spec)
    assert operators["counts"].get("QAttention", 0) == (0 if scheme == "int4" else 1), "projections were not packed"
    assert np.median(errors(simulated_as(spec, model), tmp_path)) < 1e-5
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

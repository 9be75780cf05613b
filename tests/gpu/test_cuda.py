"""On a machine with a GPU: what runs there, and what is refused because it would not. ``pytest -m gpu``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.contracts.base import FeatherweightError
from tasks.ml.graph import export as onnx_export
from tasks.ml.models import quantization_spec
from tasks.ml.problems import text_classification
from tasks.ml.runtime import sessions
from tests.tasks import tiny_models

pytestmark = pytest.mark.gpu

SAMPLE = sessions.feed([[2, 5, 6, 7, 3], [2, 8, 3]], pad_id=0)


def export(directory: Path, spec: quantization_spec.Spec) -> Path:
    onnx_export.export_onnx(
        tiny_models.model(),
        directory,
        spec=spec,
        inputs=text_classification.ONNX_INPUTS,
        outputs=text_classification.ONNX_OUTPUTS,
        opset=20,
        first_token_only=True,
    )
    return directory / onnx_export.MODEL


def test_every_heavy_node_of_an_fp32_model_runs_on_the_gpu(tmp_path: Path) -> None:
    model = export(tmp_path, quantization_spec.Spec())
    assert sessions.choose_provider(model, SAMPLE, device="cuda") == sessions.CUDA
    nodes = sessions.placement(model, SAMPLE, provider=sessions.CUDA)
    assert nodes[sessions.CUDA]["MultiHeadAttention"] == 1, "and the last layer, whose one query needs no operator"
    assert sessions.stray_nodes(nodes, sessions.CUDA) == {}


def test_the_gpu_agrees_with_pytorch(tmp_path: Path) -> None:
    session = sessions.open_session(export(tmp_path, quantization_spec.Spec()), provider=sessions.CUDA)
    inputs = {name: torch.from_numpy(array) for name, array in SAMPLE.items()}
    with torch.inference_mode():
        expected = tiny_models.model()(**inputs).logits.numpy()
    # The GPU multiplies in TF32: ten bits of mantissa.
    assert np.abs(session.run(None, SAMPLE)[0] - expected).max() < 1e-2


def test_an_integer_model_does_not_pass_for_one_on_the_gpu(tmp_path: Path) -> None:
    spec = quantization_spec.plan(tiny_models.model(), linears=True, token_bits=8, block_size=32)
    model = export(tmp_path, spec)
    assert sessions.choose_provider(model, SAMPLE, device="auto") == sessions.CPU
    with pytest.raises(FeatherweightError, match=r"fell back to the CPU: .*DynamicQuantizeMatMul"):
        sessions.choose_provider(model, SAMPLE, device="cuda")

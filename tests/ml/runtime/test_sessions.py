"""Sessions are where they claim to be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tasks.contracts.base import FeatherweightError
from tasks.ml.runtime import sessions

NO_GPU = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Sums the ids that the mask lets through, as logits (B, 2): the sum, and its negative."""
    path = tmp_path / "model.onnx"
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask) => (float[batch, 2] logits)
    <int64[1] last = {1}, float[1, 2] signs = {1.0, -1.0}>
    { kept = Mul(input_ids, attention_mask)  total = ReduceSum(kept, last)
      value = Cast<to = 1>(total)  logits = MatMul(value, signs) }"""
    onnx.save(onnx.parser.parse_model(text), path)
    return path


SAMPLE = sessions.feed([[1, 2, 3]], pad_id=0)


def test_feed_pads_on_the_right() -> None:
    feed = sessions.feed([[5, 6, 7], [8]], pad_id=9, length=4)
    assert feed["input_ids"].tolist() == [[5, 6, 7, 9], [8, 9, 9, 9]]
    assert feed["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert {array.dtype for array in feed.values()} == {np.dtype(np.int64)}
    nothing = sessions.feed([[]], pad_id=3)  # on which the runtime would end the process
    assert (nothing["input_ids"].tolist(), nothing["attention_mask"].tolist()) == ([[3]], [[0]])


def test_a_graph_of_others_gets_the_inputs_that_it_has(tmp_path: Path) -> None:
    """No mask, token types, and int32."""
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (int32[batch, sequence] input_ids, int64[batch, sequence] token_type_ids) => (float[batch, 1] logits)
    <int64[1] last = {1}>
    { ids = Cast<to = 7>(input_ids)  both = Add(ids, token_type_ids)  total = ReduceSum(both, last)
      logits = Cast<to = 1>(total) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    session = sessions.open_session(tmp_path / "model.onnx", provider=sessions.CPU, threads=1)
    assert sessions.logits(session, [[3, 4], [5]], pad_id=0)[:, 0].tolist() == [7, 5]
    feed = sessions.wanted(session, SAMPLE)
    assert {name: array.dtype for name, array in feed.items()} == {"input_ids": np.int32, "token_type_ids": np.int64}


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_logits_come_in_row_order_and_without_padding(model: Path, batch_size: int) -> None:
    session = sessions.open_session(model, provider=sessions.CPU, threads=1)
    rows = [[3, 4], [1], [2, 2, 2, 2], [5], [9, 9, 9]]
    logits = sessions.logits(session, rows, pad_id=100, batch_size=batch_size)
    assert logits[:, 0].tolist() == [7, 1, 8, 5, 27]


def test_placement_counts_what_ran_where(model: Path) -> None:
    nodes = sessions.placement(model, SAMPLE, provider=sessions.CPU, threads=1)
    assert nodes == {"CPUExecutionProvider": {"Cast": 1, "MatMul": 1, "Mul": 1, "ReduceSum": 1}}


def test_heavy_nodes_elsewhere_are_stray() -> None:
    nodes = {"CPUExecutionProvider": {"Shape": 3, "QAttention": 2}, "CUDAExecutionProvider": {"MatMul": 4}}
    assert sessions.stray_nodes(nodes, sessions.CUDA) == {"QAttention": 2}
    assert sessions.stray_nodes(nodes, sessions.CPU) == {"MatMul": 4}


@NO_GPU
def test_a_gpu_that_is_not_there_is_an_error(model: Path) -> None:
    with pytest.raises(FeatherweightError, match="cannot start a CUDA session"):
        sessions.choose_provider(model, SAMPLE, device="cuda")


@NO_GPU
def test_auto_is_the_cpu_without_a_gpu_and_quiet_about_it(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sessions.choose_provider(model, SAMPLE, device="auto") == sessions.CPU
    assert capfd.readouterr() == ("", "")


@NO_GPU
def test_a_session_that_fell_back_is_refused(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if sessions.CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime was built without CUDA")
    with pytest.raises(FeatherweightError, match="fell back from CUDAExecutionProvider to CPUExecutionProvider"):
        sessions.open_session(model, provider=sessions.CUDA)


def test_it_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, tasks.ml.runtime.probe; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

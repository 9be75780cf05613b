"""The harness: real processes, one asked at a time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import onnx
import psutil
import pytest

from tasks.ml import runtime, timing

ROWS = [[2, 30, 31, 3], [2, 40, 3], [2, 41, 42, 43, 3]]


@pytest.fixture
def onnx_directory(tmp_path: Path) -> Path:
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask) => (int64[batch, sequence] logits)
    { logits = Mul(input_ids, attention_mask) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    return tmp_path


def onnx_probe(directory: Path) -> timing.Probe:
    return timing.Probe(runtime="onnx", directory=str(directory), provider=runtime.CPU, threads=1, pad_id=0, rows=ROWS)


def torch_probe(directory: Path) -> timing.Probe:
    return timing.Probe(
        runtime="torch",
        directory=str(directory),
        problem="text-classification",
        device="cpu",
        threads=1,
        pad_id=0,
        rows=ROWS,
    )


def test_two_models_are_timed_in_turn(bundle: Path, onnx_directory: Path) -> None:
    with torch_probe(bundle) as eager, onnx_probe(onnx_directory) as shipped:
        measured = timing.interleaved({"eager": eager, "shipped": shipped}, rounds=3)
        assert {name: [len(times) for times in rounds] for name, rounds in measured.items()} == {
            "eager": [3, 3, 3],
            "shipped": [3, 3, 3],
        }
        fast, slow = (timing.summary(measured[name])["latency_p50_ms"] for name in ("shipped", "eager"))
        assert 0 < fast < slow
        assert shipped.peak_memory_mb < 150 < eager.peak_memory_mb, "torch was loaded where it was not needed"
        assert 0 < shipped.load_time_s < eager.load_time_s
        assert eager.throughput(batch_sizes=(1, 2)) > 0
        cells = shipped.grid([(1, 4), (2, 8)])
        assert [(cell["batch"], cell["length"]) for cell in cells] == [(1, 4), (2, 8)]
        assert all(cell["rows_per_s"] == pytest.approx(cell["batch"] / cell["p50_ms"] * 1e3) for cell in cells)


def test_a_model_that_is_not_asked_sleeps(onnx_directory: Path) -> None:
    with onnx_probe(onnx_directory) as probe:
        probe.latencies()
        process = psutil.Process(probe.pid)
        before = sum(process.cpu_times()[:2])
        time.sleep(0.5)
        assert sum(process.cpu_times()[:2]) - before < 0.05


def test_no_process_is_left_behind(onnx_directory: Path) -> None:
    with onnx_probe(onnx_directory) as probe:
        assert psutil.pid_exists(probe.pid)
    assert not psutil.pid_exists(probe.pid)


def test_a_model_that_does_not_load_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"model\.onnx"):
        onnx_probe(tmp_path / "nowhere")


def test_a_child_measures_its_own_memory_and_not_its_parents() -> None:
    ballast = bytearray(400_000_000)
    code = "from tasks.ml import machine; print(machine.peak_memory_mb())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5 < float(done.stdout) < 100 < len(ballast) / 1e6


def test_summary() -> None:
    summary = timing.summary([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert summary["latency_p50_ms"] == 3.5
    assert summary["latency_p50_rounds_ms"] == [2.0, 5.0]
    assert summary["latency_p50_ms"] < summary["latency_p95_ms"] < summary["latency_p99_ms"] <= 6.0


def test_grid_stays_within_what_is_served() -> None:
    assert {length for _, length in timing.grid_shapes(64)} == {16, 32, 64}
    assert {length for _, length in timing.grid_shapes(12)} == {12}
    assert {batch for batch, _ in timing.grid_shapes(64)} == {1, 8, 32}

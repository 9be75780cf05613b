"""The harness: real processes, one asked at a time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import onnx
import psutil
import pytest

from tasks.ml.runtime import sessions, timing
from tasks.ml.runtime.probe import Holder, Prepare

ROWS = [[2, 30, 31, 3], [2, 40, 3], [2, 41, 42, 43, 3]]


@pytest.fixture
def onnx_directory(tmp_path: Path) -> Path:
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask) => (int64[batch, sequence] logits)
    { logits = Mul(input_ids, attention_mask) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    return tmp_path


def probe(*directories: Path, **setup: str) -> timing.Probe:
    models = {path.name: {"directory": str(path), "pad_id": 0, "rows": ROWS} for path in directories}
    return timing.Probe(models=models, threads=1, **setup)


def onnx_probe(directory: Path) -> timing.Probe:
    return probe(directory, runtime="onnx", provider=sessions.CPU)


def torch_probe(*directories: Path) -> timing.Probe:
    return probe(*directories, runtime="torch", problem="text-classification", device="cpu")


@pytest.mark.alone
def test_models_are_timed_in_turn(bundle: Path, onnx_directory: Path) -> None:
    other = bundle.parent / "other"
    shutil.copytree(bundle, other)
    with torch_probe(bundle, other) as eager, onnx_probe(onnx_directory) as shipped:
        names = {"bundle": eager, "other": eager, onnx_directory.name: shipped}
        measured = timing.interleaved(names, rounds=3)
        assert measured.keys() == names.keys()
        assert all([len(times) for times in rounds] == [3, 3, 3] for rounds in measured.values())
        fast, slow = (timing.summary(measured[name])["latency_p50_ms"] for name in (onnx_directory.name, "bundle"))
        assert 0 < fast < slow
        first, second, light = eager.loaded["bundle"], eager.loaded["other"], shipped.loaded[onnx_directory.name]
        assert light["peak_memory_mb"] < 150 < first["peak_memory_mb"], "torch was loaded where it was not needed"
        assert 0 < light["load_time_s"] < second["load_time_s"]
        assert second["peak_memory_mb"] == pytest.approx(first["peak_memory_mb"], rel=0.1), "the first model is counted"
        assert eager.throughput("other", batch_sizes=(1, 2)) > 0
        paces = timing.paces({"bundle": eager, onnx_directory.name: shipped}, rounds=4, batch_size=2)
        assert all(len(pace.latency_rounds_ms) == len(pace.throughput_rounds_per_s) == 4 for pace in paces.values())
        slow_pace, fast_pace = paces["bundle"], paces[onnx_directory.name]
        assert 0 < fast_pace.latency_p50_ms < slow_pace.latency_p50_ms
        assert fast_pace.throughput_per_s > slow_pace.throughput_per_s > 0
        cells = shipped.grid(onnx_directory.name, [(1, 4), (2, 8)])
        assert [(cell["batch"], cell["length"]) for cell in cells] == [(1, 4), (2, 8)]
        assert all(cell["rows_per_s"] == pytest.approx(cell["batch"] / cell["p50_ms"] * 1e3) for cell in cells)


def test_a_model_that_is_not_asked_sleeps(onnx_directory: Path) -> None:
    with onnx_probe(onnx_directory) as probe:
        probe.latencies(onnx_directory.name)
        process = psutil.Process(probe.pid)
        before = sum(process.cpu_times()[:2])
        time.sleep(0.5)
        assert sum(process.cpu_times()[:2]) - before < 0.05


def test_no_process_is_left_behind(onnx_directory: Path) -> None:
    with onnx_probe(onnx_directory) as probe:
        assert psutil.pid_exists(probe.pid)
    assert not psutil.pid_exists(probe.pid)


def test_a_model_is_not_charged_for_the_one_before_it(tmp_path: Path) -> None:
    def load(directory: Path, pad_id: int) -> Prepare:
        time.sleep(0.5)
        return lambda rows, length: lambda: None

    holder = Holder(load)
    for _ in range(2):
        _, loaded = holder.hold(tmp_path, ROWS, pad_id=0)
        assert 0.5 <= loaded["load_time_s"] - holder.import_seconds < 0.9


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


def test_paces_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = [timing.Pace((1.0, 3.0, 2.0), (10.0, 30.0, 20.0)), timing.Pace((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))]
    timing.write_paces(tmp_path / "race.json", found)
    assert timing.read_paces(tmp_path / "race.json") == found
    assert (found[0].latency_p50_ms, found[0].throughput_per_s) == (2.0, 20.0)


def test_grid_stays_within_what_is_served() -> None:
    assert {length for _, length in timing.grid_shapes(64)} == {16, 32, 64}
    assert {length for _, length in timing.grid_shapes(12)} == {12}
    assert {batch for batch, _ in timing.grid_shapes(64)} == {1, 8, 32}

"""The harness: real processes, one asked at a time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import torch

from tasks.ml.models import modeling
from tasks.ml.runtime import generation, sessions, timing
from tasks.ml.runtime.probe import Holder, Model
from tests.ml import decoder_bundles

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
    def load(directory: Path, pad_id: int) -> Model:
        time.sleep(0.5)
        return Model(lambda rows, length: lambda: None)

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


@pytest.mark.alone
def test_a_decoder_answers_with_new_tokens(tmp_path: Path) -> None:
    source, graph = decoder_bundles.write(tmp_path)
    with probe(source, runtime="torch", problem="causal-lm", device="cpu") as eager, onnx_probe(graph) as shipped:
        running = {"torch": eager, "onnx": shipped}
        for name, one in running.items():
            assert all(took > 0 for took in one.latencies(name))
            assert one.throughput(name, (1, 32), tokens_at_once=10) > 0
            assert [cell["length"] for cell in one.grid(name, [(2, 8)])] == [8]
        found = timing.generations(running, [8, 32], rounds=2)
        assert [(cell["stage"], cell["context"]) for cell in found] == [
            ("torch", 8), ("torch", 32), ("onnx", 8), ("onnx", 32),
        ]  # fmt: skip
        assert all(cell[name] > 0 for cell in found for name in ("prefill_per_s", "decode_per_s", "first_token_ms"))
        memory = {cell["stage"]: cell["memory_mb"] for cell in found}
        assert 20 < memory["onnx"] < 150 < memory["torch"], "torch was loaded where it was not needed"


def test_both_runtimes_generate_the_same(tmp_path: Path) -> None:
    source, graph = decoder_bundles.write(tmp_path)
    session = sessions.open_session(graph / "model.onnx", provider=sessions.CPU, threads=1)
    model = modeling.load(source, "causal-lm")
    prompt = list(range(3, 17))
    wanted = generation.greedy(generation.of_module(model)(), prompt, 20)
    for at_once in (0, 5, generation.AT_ONCE):
        assert generation.greedy(generation.of_session(session, at_once=at_once)(), prompt, 20) == wanted
    assert (
        model.generate(torch.tensor([prompt]), max_new_tokens=20, min_new_tokens=20, do_sample=False)[0, 14:].tolist()
        == wanted
    )


def test_a_request_leaves_room_for_new_tokens() -> None:
    seen: list[int] = []

    def begin() -> generation.Read:
        def read(tokens: Sequence[int]) -> np.ndarray:
            seen.append(len(tokens))
            return np.zeros((1, 4))

        return read

    Model(lambda rows, length: lambda: None, begin, positions=20).request([1] * 20)()
    assert seen == [4, *[1] * 15]


def test_contexts_fit_the_positions() -> None:
    assert timing.contexts(8192) == [128, 1024]
    assert timing.contexts(1024) == [128, 992]
    assert timing.contexts(64) == [32]


def test_the_grid_of_a_decoder_keeps_its_logits_small() -> None:
    shapes = timing.grid_shapes(512, tokens_at_once=2048)
    assert max(batch * length for batch, length in shapes) == 2048
    assert (32, 64) in shapes
    assert (1, 512) in shapes

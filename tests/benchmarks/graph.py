"""Where the microseconds of the exported graph go: run it on an otherwise idle machine.

    infra/run python tests/benchmarks/graph.py [--shapes 3x9x768x384 2x9x768x384 …] [--threads 2] [--keep DIRECTORY]

Makes students of the given shapes (layers × heads × FFN channels × hidden) and the demo's vocabulary, with untrained
weights, because speed does not depend on training, exports them as the demo does, and times them beside the eager fp32
teacher, in turns, by ``tasks.ml.runtime.timing`` as ``validate`` does it: p50 of one sentence, and rows per second in
batches of 16 of similar length. Lengths are those of the demo's test split, in equal shares.

Of the first shape it prints a roofline, by operator, of one sentence and of a batch of 16, both of 27 tokens, the mean:
the time of its kernels, what they compute and move, and the least time that takes at what this machine was measured to
do. Times are means, without the slowest quarter, of what the runtime's profiler says, less what it says of the cheapest
node: a few µs that it takes itself. ``between nodes`` is the rest of a run: dispatch, feeds and the call.

What each part was worth when it was kept, in µs a sentence and rows/s at 16 of a student of 3x9x768x384; one core of
an AMD EPYC (Zen 4), 2026-11-25:

| | one sentence | batch of 16 |
|---|---|---|
| before | 563 | 1,900 |
| the last layer's one query without keys and values | 527 | 2,135 |
| LayerNormalization and Sum instead of InstanceNormalization, Mul, Add and Add | 509 | 2,186 |

With two threads the last of these takes 394 µs, 24 times as fast as the teacher, and gives 3,571 rows/s at 16, 14.6
times as many; what it was before has not been measured with two threads on an idle machine.

Prints Markdown on standard output; takes about half a minute, and ten seconds more with each further shape.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import torch
from transformers import BertConfig, BertForSequenceClassification

sys.path.insert(0, str(Path(__file__).parents[2]))

from tasks.ml import machine
from tasks.ml.graph import export as onnx_export
from tasks.ml.models import families, modeling, quantization_spec
from tasks.ml.problems import text_classification
from tasks.ml.runtime import sessions, timing
from tasks.ml.xray import roofline

PROBLEM = "text-classification"
VOCABULARY, KEPT_VOCABULARY = 30522, 13735
HEAD_SIZE = 32
DECILES = (10, 13, 17, 20, 24, 26, 29, 32, 36, 42, 47)
"""Tokens of the demo's test rows: percentiles 5, 10, 20 … 90 and 95."""
MEAN_LENGTH = 27
BATCH = 16
RUNS = 200
"""Profiled runs of one sentence; of a batch, a quarter as many."""
WARMUP = 10
SETTLE_SECONDS = 0.5
"""Until the threads of whatever computed before have gone to sleep."""


class Shape(NamedTuple):
    layers: int
    heads: int
    ffn: int
    hidden: int

    def __str__(self) -> str:
        return "x".join(map(str, self))


class Work(NamedTuple):
    """What one call of a node is: integer and float operations (a multiply–add is two), and bytes in and out."""

    integer: float = 0.0
    floating: float = 0.0
    moved: float = 0.0


def teacher() -> BertForSequenceClassification:
    config = BertConfig(vocab_size=VOCABULARY, hidden_size=384, num_hidden_layers=6, intermediate_size=1536)
    return BertForSequenceClassification(config).eval()


def student(shape: Shape) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=KEPT_VOCABULARY,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // HEAD_SIZE,
        intermediate_size=shape.ffn,
    )
    model, family = BertForSequenceClassification(config), families.of("bert")
    for layer in family.layer_list(model):
        modeling.resize(family, layer, heads=shape.heads, ffn=shape.ffn)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.05)
            torch.nn.init.zeros_(module.bias)
    return model.eval()


def export(shape: Shape, directory: Path) -> None:
    model = student(shape)
    onnx_export.export_onnx(
        model,
        directory,
        spec=quantization_spec.plan(model, linears=True, token_bits=8, block_size=32),
        inputs=text_classification.ONNX_INPUTS,
        outputs=text_classification.ONNX_OUTPUTS,
        opset=20,
        first_token_only=True,
    )


def prepare(folder: Path, shapes: Sequence[Shape]) -> dict[str, Path]:
    """Writes teacher and students, those that are not there yet, into a folder each."""
    torch.manual_seed(0)
    directories = {name: folder / name for name in ("teacher", *map(str, shapes))}
    for name, directory in directories.items():
        if directory.is_dir():
            continue
        print(f"making {name}", file=sys.stderr, flush=True)
        directory.mkdir(parents=True)
        if name == "teacher":
            modeling.save_model(teacher(), directory)
        else:
            export(Shape(*map(int, name.split("x"))), directory)
    return directories


def sentences(count: int) -> list[list[int]]:
    generator = np.random.default_rng(0)
    lengths = [DECILES[number % len(DECILES)] for number in range(count)]
    return [generator.integers(1000, KEPT_VOCABULARY, length).tolist() for length in generator.permutation(lengths)]


def race(directories: Mapping[str, Path], *, threads: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Times everybody in turns: name → p50 in ms and rows/s at 16, medians over rounds."""
    rows = sentences(10 * BATCH)
    probes = {}
    try:
        for name, directory in directories.items():
            probes[name] = timing.Probe(
                runtime="torch" if name == "teacher" else "onnx",
                models={name: {"directory": str(directory), "pad_id": 0, "rows": rows}},
                problem=PROBLEM,
                provider=sessions.CPU,
                device="cpu",
                threads=threads,
            )
        single: dict[str, list[float]] = defaultdict(list)
        batched: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds):
            for name, probe in probes.items():
                single[name].append(statistics.median(probe.latencies(name)))
                batched[name].append(probe.throughput(name, [BATCH]))
    finally:
        for probe in probes.values():
            probe.__exit__(None, None, None)
    return {name: (statistics.median(single[name]), statistics.median(batched[name])) for name in probes}


def work(event: Mapping[str, Any]) -> Work:
    """Reads from a profiler's event what its node computed; shapes are what it was given."""
    arguments = event["args"]
    inputs = [next(iter(entry.values())) for entry in arguments["input_type_shape"]]
    outputs = [next(iter(entry.values())) for entry in arguments["output_type_shape"]]
    width = {"int8": 1, "uint8": 1, "int64": 8}
    moved = sum(
        width.get(kind, 4) * float(np.prod(shape))
        for entry in (*arguments["input_type_shape"], *arguments["output_type_shape"])
        for kind, shape in entry.items()
    )
    operator = arguments["op_name"]
    if operator == "DynamicQuantizeMatMul":
        return Work(integer=2 * float(np.prod(inputs[0])) * inputs[1][-1], moved=moved)
    if operator == "QAttention":
        rows, tokens, _ = inputs[0]
        scores = 4 * rows * tokens**2 * outputs[0][-1]
        return Work(integer=2 * float(np.prod(inputs[0])) * inputs[1][-1], floating=scores, moved=moved)
    if operator in sessions.MATMULS:
        inner = inputs[0][-1]
        return Work(floating=2 * float(np.prod(outputs[0])) * inner, moved=moved)
    if operator == "Gather":  # reads the rows it hands on, and not the table
        return Work(moved=2 * 4 * float(np.prod(outputs[0])))
    return Work(moved=moved)


def profile(
    model: Path, feed: sessions.Feed, *, threads: int, runs: int
) -> tuple[list[tuple[str, float, Work]], float]:
    """Operator, µs and work of each node, and the median µs of a run without the profiler."""
    time.sleep(SETTLE_SECONDS)
    plain = sessions.open_session(model, provider=sessions.CPU, threads=threads)
    times = []
    for _ in range(runs + WARMUP):
        started = time.perf_counter()
        plain.run(None, feed)
        times.append((time.perf_counter() - started) * 1e6)
    del plain
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(model), options, providers=[sessions.CPU])
        for _ in range(runs + WARMUP):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        del session
    by_node: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            by_node[event["name"]].append(event)
    nodes = []
    for calls in by_node.values():
        kept = sorted(event["dur"] for event in calls[WARMUP:])[: runs - runs // 4]
        nodes.append((calls[0]["args"]["op_name"], statistics.mean(kept), work(calls[0])))
    own = min(micros for _, micros, _ in nodes)
    return [(operator, micros - own, one) for operator, micros, one in nodes], statistics.median(times[WARMUP:])


def integer_peak(threads: int) -> float:
    """Best rate of integer products of the runtime, in operations per second: (1024, 1024) by (1024, 1024)."""
    size = 1024
    codes = onnx.numpy_helper.from_array(np.ones((size, size), np.uint8), "codes")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["x", "codes"], ["y"])],
        "product",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [size, size])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [size, size])],
        [codes],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=[sessions.CPU])
    feed = {"x": np.ones((size, size), np.uint8)}
    best = float("inf")
    for _ in range(30):
        started = time.perf_counter()
        session.run(None, feed)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def print_roofline(model: Path, *, threads: int) -> None:
    torch.set_num_threads(threads)
    peaks, integers = roofline.measure(torch.device("cpu"), seconds=0.3), integer_peak(threads)
    floats, cache = peaks.peak_flops_per_s["fp32"], peaks.cache_bytes_per_s
    print(
        f"\nPeaks, {threads} threads: {integers / 1e9:.0f} int8 GOP/s, {floats / 1e9:.0f} fp32 GFLOP/s, "
        f"{cache / 1e9:.0f} GB/s in the cache"
    )
    for rows, runs in ((1, RUNS), (BATCH, RUNS // 4)):
        feed = sessions.feed([list(range(1000, 1000 + MEAN_LENGTH))] * rows, pad_id=0)
        nodes, total = profile(model, feed, threads=threads, runs=runs)
        print(f"\n{rows} × {MEAN_LENGTH} tokens: {len(nodes)} nodes, {total:.0f} µs a run\n")
        print("| operator | nodes | µs | of a run | MOP | MB | least µs |\n|---|---|---|---|---|---|---|")
        kinds: dict[str, list[tuple[float, Work]]] = defaultdict(list)
        for operator, micros, one in nodes:
            kinds[operator].append((micros, one))
        for operator, found in sorted(kinds.items(), key=lambda item: -sum(micros for micros, _ in item[1])):
            micros = sum(each for each, _ in found)
            integer, floating, moved = (sum(getattr(one, name) for _, one in found) for name in Work._fields)
            bounds = (max(one.integer / integers + one.floating / floats, one.moved / cache) for _, one in found)
            print(
                f"| {operator} | {len(found)} | {micros:.1f} | {micros / total:.0%} | {(integer + floating) / 1e6:.1f} "
                f"| {moved / 1e6:.2f} | {sum(bounds) * 1e6:.1f} |"
            )
        rest = total - sum(micros for _, micros, _ in nodes)
        print(f"| between nodes | | {rest:.1f} | {rest / total:.0%} | | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["3x9x768x384"], help="layers x heads x FFN x hidden")
    parser.add_argument("--threads", type=int, default=0, help="of everybody; 0: all cores")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="a folder for the models; those that are there are not made again")
    parser.add_argument("--only-make", action="store_true", help="make the models and time nothing")
    options = parser.parse_args()
    threads = options.threads or machine.num_cores()
    shapes = [Shape(*map(int, text.split("x"))) for text in options.shapes]
    folder = options.keep or Path(tempfile.mkdtemp(prefix="featherweight-benchmark-"))
    directories = prepare(folder, shapes)
    if options.only_make:
        return
    company = machine.Company()
    measured = race(directories, threads=threads, rounds=options.rounds)
    slow, few = measured.pop("teacher")
    print(f"{machine.identity()}, {threads} threads; others took {company.share():.0%} of the cores meanwhile\n")
    print("| layers x heads x FFN x hidden | p50, ms | times | rows/s at 16 | times | MB |\n|---|---|---|---|---|---|")
    print(f"| teacher, PyTorch eager fp32 | {slow:.2f} | | {few:.0f} | | |")
    for name, (fast, many) in measured.items():
        size = onnx_export.num_bytes(directories[name]) / 1e6
        print(f"| {name} | {fast:.3f} | {slow / fast:.1f} | {many:.0f} | {many / few:.1f} | {size:.2f} |")
    print_roofline(directories[str(shapes[0])] / onnx_export.MODEL, threads=threads)


if __name__ == "__main__":
    main()

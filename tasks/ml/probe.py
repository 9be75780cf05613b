"""A clean process that holds one model and times it: ``python -m tasks.ml.probe``, driven by ``tasks.ml.timing``.

It reads one JSON line a command and writes one JSON line an answer. The first line says what to load; the answer to it
is how long that took, from here to the first logits, and the highest memory until then. A model in ONNX Runtime loads
neither torch nor transformers, so that its numbers are those of a server.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

MIN_REPEATS = 3
GRID_SECONDS = 0.3
"""Time spent on one cell of the grid, if ``MIN_REPEATS`` calls do not take longer."""

Rows = Sequence[Sequence[int]]
Prepare = Callable[[Rows, int | None], Callable[[], Any]]
"""Makes of rows, padded to a length, a call that runs the model once and hands back host memory."""


def _torch_model(directory: Path, *, problem: str, threads: int, pad_id: int, device: str) -> Prepare:
    import torch

    from tasks.ml import modeling, runtime

    torch.set_num_threads(threads)
    model = modeling.load(directory, problem, simulate=False).to(device)

    def prepare(rows: Rows, length: int | None) -> Callable[[], Any]:
        feed = runtime.feed(rows, pad_id=pad_id, length=length)
        inputs = {name: torch.from_numpy(array).to(device) for name, array in feed.items()}

        def call() -> Any:
            with torch.inference_mode():
                return model(**inputs).logits.cpu()

        return call

    return prepare


def _onnx_model(directory: Path, *, threads: int, pad_id: int, provider: str) -> Prepare:
    from tasks.ml import runtime

    session = runtime.open_session(directory / "model.onnx", provider=provider, threads=threads)

    def prepare(rows: Rows, length: int | None) -> Callable[[], Any]:
        feed = runtime.feed(rows, pad_id=pad_id, length=length)
        return lambda: session.run(None, feed)

    return prepare


def _milliseconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def latencies(prepare: Prepare, rows: Rows) -> list[float]:
    """Milliseconds of each row alone, after some rows to bring threads and caches back."""
    calls = [prepare([row], None) for row in rows]
    for call in calls[:10]:
        call()
    return [_milliseconds(call) for call in calls]


def throughput(prepare: Prepare, rows: Rows, batch_sizes: Sequence[int]) -> float:
    """Rows per second at the best batch size, rows of similar length together."""
    ordered = sorted(rows, key=len)
    rates = []
    for size in batch_sizes:
        calls = [prepare(ordered[start : start + size], None) for start in range(0, len(ordered), size)]
        calls[-1]()
        rates.append(len(ordered) / sum(_milliseconds(call) for call in calls) * 1e3)
    return max(rates)


def grid(prepare: Prepare, rows: Rows, shapes: Sequence[tuple[int, int]]) -> list[dict[str, float]]:
    """Median milliseconds and rows per second of batches of (B, S) full of tokens."""
    tokens = [token for row in rows for token in row]
    cells = []
    for batch, length in shapes:
        filled = [[tokens[(row * length + i) % len(tokens)] for i in range(length)] for row in range(batch)]
        call = prepare(filled, length)
        call()
        times = [_milliseconds(call)]
        while len(times) < MIN_REPEATS or sum(times) < GRID_SECONDS * 1e3:
            times.append(_milliseconds(call))
        median = sorted(times)[len(times) // 2]
        cells.append({"batch": batch, "length": length, "p50_ms": median, "rows_per_s": batch / median * 1e3})
    return cells


def main() -> None:
    # Whatever a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    setup = json.loads(sys.stdin.readline())
    rows: Rows = setup["rows"]
    directory = Path(setup["directory"])
    shared = {"threads": setup["threads"], "pad_id": setup["pad_id"]}
    if setup["runtime"] == "torch":
        prepare = _torch_model(directory, problem=setup["problem"], device=setup["device"], **shared)
    else:
        prepare = _onnx_model(directory, provider=setup["provider"], **shared)
    prepare(rows[:1], None)()
    from tasks.ml import machine

    answer({"load_time_s": time.perf_counter() - STARTED, "peak_memory_mb": machine.peak_memory_mb()})
    for line in sys.stdin:
        command = json.loads(line)
        if command["measure"] == "latencies":
            answer(latencies(prepare, rows))
        elif command["measure"] == "throughput":
            answer(throughput(prepare, rows, command["batch_sizes"]))
        else:
            answer(grid(prepare, rows, command["shapes"]))


if __name__ == "__main__":
    main()

"""A clean process of one runtime that holds models and times them: ``python -m tasks.ml.runtime.probe``.

Driven by ``tasks.ml.runtime.timing``, it reads one JSON line a command and writes one JSON line an answer. The first
line says what to load; the answer to it is how long that took, and the highest memory. A process of ONNX Runtime loads
neither torch nor transformers, so that its numbers are those of a server.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.ml.runtime.generation import Begin

STARTED = time.perf_counter()

MIN_REPEATS = 3
GRID_SECONDS = 0.3
"""Time spent on one cell of the grid, if ``MIN_REPEATS`` calls do not take longer."""
WARM_SECONDS = 1.0
"""After which models are warm that have not answered ten rows by then."""
ROUNDS, WARM_RUNS, MIN_RUNS = 3, 5, 15
GRAPH_SECONDS = 0.03
"""Time spent on one graph in one round, if ``MIN_RUNS`` runs do not take longer."""
REQUEST, GENERATED = 16, 32
"""Tokens that a decoder generates where a row is a request, and where the pace of generation is measured."""

Rows = Sequence[Sequence[int]]
Prepare = Callable[[Rows, int | None], Callable[[], Any]]
"""Makes of rows, padded to a length, a call that runs the model once and hands back host memory."""


@dataclass(frozen=True)
class Model:
    """A model that is held.

    Attributes:
        prepare: what reads rows.
        begin: begins a text of a decoder; ``None`` where a model does not generate.
        positions: tokens that a decoder's text and what is generated after it may have.
        others_mb: resident memory of the other models of this process, in 10^6 bytes.
    """

    prepare: Prepare
    begin: Begin | None = None
    positions: int = 0
    others_mb: float = 0.0

    def request(self, row: Sequence[int]) -> Callable[[], Any]:
        """A call that answers a row as a server does: a decoder reads it and generates ``REQUEST`` tokens."""
        if self.begin is None:
            return self.prepare([row], None)
        from tasks.ml.runtime.generation import greedy

        begin, prompt = self.begin, row[: max(1, self.positions - REQUEST)]
        return lambda: greedy(begin(), prompt, REQUEST)


Load = Callable[[Path, int], Model]
"""Loads the model in a directory, padded with a token id."""


def _torch(*, problem: str, threads: int, device: str, models: Mapping[str, Any], **_: Any) -> Load:
    import torch

    from tasks.ml.models import architectures, decoders, locators, modeling
    from tasks.ml.runtime import generation, sessions

    torch.set_num_threads(threads)
    with torch.device("meta"):  # transformers imports an architecture on its first use, and all models here share it
        modeling.skeleton(Path(next(iter(models.values()))["directory"]), problem)

    def load(directory: Path, pad_id: int) -> Model:
        model = modeling.load(directory, problem).to(device)

        def prepare(rows: Rows, length: int | None) -> Callable[[], Any]:
            feed = sessions.feed(rows, pad_id=pad_id, length=length)
            inputs = {name: torch.from_numpy(array).to(device) for name, array in feed.items()}

            def call() -> Any:
                with torch.inference_mode():
                    return model(**inputs).logits.cpu()

            return call

        if isinstance(architectures.of_model(model), decoders.Decoder):
            return Model(prepare, generation.of_module(model), locators.positions(directory))
        return Model(prepare)

    return load


def _onnx(*, threads: int, provider: str, **_: Any) -> Load:
    from tasks.ml.models import locators
    from tasks.ml.runtime import generation, sessions

    def load(directory: Path, pad_id: int) -> Model:
        session = sessions.open_session(directory / "model.onnx", provider=provider, threads=threads)

        def prepare(rows: Rows, length: int | None) -> Callable[[], Any]:
            feed = sessions.wanted(session, sessions.feed(rows, pad_id=pad_id, length=length))
            return lambda: session.run(None, feed)

        if sessions.has_cache(session):
            return Model(prepare, generation.of_session(session), locators.positions(directory))
        return Model(prepare)

    return load


def _milliseconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def latencies(model: Model, rows: Rows) -> list[float]:
    """Milliseconds of each row's request alone, after some rows to bring threads and caches back."""
    calls = [model.request(row) for row in rows]
    started = time.perf_counter()
    for call in calls[:10]:
        call()
        if time.perf_counter() - started > WARM_SECONDS:
            break
    return [_milliseconds(call) for call in calls]


def throughput(model: Model, rows: Rows, batch_sizes: Sequence[int], tokens_at_once: int = 0) -> float:
    """Rows per second at the best batch size, rows of similar length together; of a decoder, rows that it reads.

    Args:
        tokens_at_once: most tokens of a batch, padding included, unless one row has more; 0: any.
    """
    ordered, longest = sorted(rows, key=len), max(map(len, rows))
    most = max(1, tokens_at_once // longest) if tokens_at_once else len(rows)
    rates = []
    for size in {min(size, most) for size in batch_sizes}:
        calls = [model.prepare(ordered[start : start + size], None) for start in range(0, len(ordered), size)]
        calls[-1]()
        rates.append(len(ordered) / sum(_milliseconds(call) for call in calls) * 1e3)
    return max(rates)


def grid(model: Model, rows: Rows, shapes: Sequence[tuple[int, int]]) -> list[dict[str, float]]:
    """Median milliseconds and rows per second of batches of (B, S) full of tokens, which a decoder reads."""
    cells = []
    for batch, length in shapes:
        call = model.prepare(_filled(rows, batch, length), length)
        call()
        times = [_milliseconds(call)]
        while len(times) < MIN_REPEATS or sum(times) < GRID_SECONDS * 1e3:
            times.append(_milliseconds(call))
        median = sorted(times)[len(times) // 2]
        cells.append({"batch": batch, "length": length, "p50_ms": median, "rows_per_s": batch / median * 1e3})
    return cells


def generation(model: Model, rows: Rows, contexts: Sequence[int]) -> list[dict[str, float]]:
    """What a decoder takes to go on after contexts of so many tokens, each read once.

    Returns:
        Of each context ``prefill_per_s`` and ``decode_per_s``, tokens per second that are read before the first new one
        and generated after it; ``first_token_ms``; and ``memory_mb``, resident while the text is held / 10^6.
    """
    from tasks.ml import machine
    from tasks.ml.runtime.generation import greedy

    assert model.begin is not None, "only a decoder generates"
    model.request(rows[0])()
    found = []
    for context in contexts:
        (prompt,), read = _filled(rows, 1, context), model.begin()
        started = time.perf_counter()
        first = greedy(read, prompt, 1)
        reading = time.perf_counter() - started
        started = time.perf_counter()
        greedy(read, first, GENERATED)
        writing = time.perf_counter() - started
        found.append({
            "context": context,
            "prefill_per_s": context / reading,
            "decode_per_s": GENERATED / writing,
            "first_token_ms": reading * 1e3,
            "memory_mb": machine.resident_memory_mb() - model.others_mb,
        })  # fmt: skip
        del read  # the next text has a cache of its own
    return found


def _filled(rows: Rows, batch: int, length: int) -> list[list[int]]:
    """Tokens of the rows, one after the other, as a batch (B, S)."""
    tokens = [token for row in rows for token in row]
    return [[tokens[(row * length + place) % len(tokens)] for place in range(length)] for row in range(batch)]


def graphs(files: Sequence[str], feeds: Mapping[str, Mapping[str, Any]], *, threads: int) -> list[float]:
    """Milliseconds of ONNX graphs, one session alive at a time: of each graph the lowest of the rounds' medians.

    What other work on the machine does to a timing is to lengthen it, so the round that it disturbed least counts.
    """
    import numpy as np

    from tasks.ml.runtime import sessions

    generator = np.random.default_rng(0)
    arrays = {
        name: (generator.integers(0, feed["high"], feed["shape"]) + feed.get("low", 0)).astype(feed["dtype"])
        for name, feed in feeds.items()
    }

    def median(file: str) -> float:
        session = sessions.open_session(Path(file), provider=sessions.CPU, threads=threads)
        feed = {one.name: arrays[one.name] for one in session.get_inputs()}
        for _ in range(WARM_RUNS):
            session.run(None, feed)
        times: list[float] = []
        while len(times) < MIN_RUNS or sum(times) < GRAPH_SECONDS * 1e3:
            times.append(_milliseconds(lambda: session.run(None, feed)))
        return statistics.median(times)

    rounds = [[median(file) for file in files] for _ in range(ROUNDS)]
    return [min(times) for times in zip(*rounds, strict=True)]


class Holder:
    """Loads models one after the other and notes what each took: from a bare interpreter, imports included.

    A later model's share is what it would have been without the models before it.
    """

    def __init__(self, load: Load) -> None:
        from tasks.ml import machine

        self.load = load
        self.import_seconds = time.perf_counter() - STARTED
        self.import_memory, self.import_peak = machine.resident_memory_mb(), machine.peak_memory_mb()

    def hold(self, directory: Path, rows: Rows, *, pad_id: int) -> tuple[Model, dict[str, float]]:
        """Returns the model, which has answered the first row, and its ``load_time_s`` and ``peak_memory_mb``."""
        from tasks.ml import machine

        held_by_others = machine.resident_memory_mb() - self.import_memory
        machine.forget_peak_memory()
        started = time.perf_counter()
        model = self.load(directory, pad_id)
        model.request(rows[0])()
        return model, {
            "load_time_s": self.import_seconds + time.perf_counter() - started,
            "peak_memory_mb": max(self.import_peak, machine.peak_memory_mb() - held_by_others),
        }


def main() -> None:
    from tasks.ml import machine

    # Whatever a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    setup = json.loads(sys.stdin.readline())
    runtimes: dict[str, Callable[..., Load]] = {"torch": _torch, "onnx": _onnx}
    holder = Holder(runtimes[setup["runtime"]](**setup))
    models: dict[str, tuple[Model, Rows]] = {}
    loaded: dict[str, dict[str, float]] = {}
    shares: dict[str, float] = {}
    for name, asked in setup["models"].items():
        before = machine.resident_memory_mb()
        model, loaded[name] = holder.hold(Path(asked["directory"]), asked["rows"], pad_id=asked["pad_id"])
        models[name], shares[name] = (model, asked["rows"]), machine.resident_memory_mb() - before
    for name, (model, rows) in models.items():
        models[name] = replace(model, others_mb=sum(shares.values()) - shares[name]), rows
    answer(loaded)
    measures: dict[str, Callable[..., Any]] = {
        "latencies": latencies, "throughput": throughput, "grid": grid, "generation": generation, "graphs": graphs,
    }  # fmt: skip
    for line in sys.stdin:
        command = json.loads(line)
        held = models[command.pop("model")] if "model" in command else ()
        answer(measures[command.pop("measure")](*held, **command))


if __name__ == "__main__":
    main()

"""Timing models against each other so that the numbers may be compared: same rows, same threads, one at a time.

PyTorch models share a process, and its threads, apart from this one; every ONNX Runtime session has one of its own.
Only one model is ever asked at a time. In one process sessions would slow each other several-fold: their threads, like
those of torch's OpenMP, spin for a while after their work is done and take the cores from whoever comes next. Rounds
are interleaved, so that a machine that grows slower or faster meanwhile does it to all models alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from tasks.ml.runtime import probe

CONTEXTS = (128, 1024)
"""Tokens that a decoder reads before its generation is timed."""
SETTLE_SECONDS = 0.1
"""Long enough for the threads of the process before to stop spinning and sleep."""

_asked: list[int] = []
"""The process that was asked last."""


class Probe:
    """A process with models of one runtime, measured on command by name. A context manager: leaving it ends it.

    Attributes:
        pid: of the process.
        loaded: of each model, ``load_time_s``, from a bare interpreter, imports included, to the first answer, and
            ``peak_memory_mb``, the highest resident set until then / 10^6.
    """

    def __init__(self, *, models: Mapping[str, Mapping[str, Any]], **setup: Any) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", probe.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        self.pid = self._process.pid
        self.loaded: dict[str, dict[str, float]] = self.ask({"models": models, **setup})

    def ask(self, question: Mapping[str, Any]) -> Any:
        """The answer to a line of JSON; the process that was asked last has gone to sleep by then."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        answer = ""
        if _asked != [self.pid]:
            _asked[:] = [self.pid]
            time.sleep(SETTLE_SECONDS)
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            complaint = self._errors.read()[-2000:]
            raise RuntimeError(f"the timing process ended with {self._process.returncode}: {complaint}")
        return json.loads(answer)

    def latencies(self, model: str) -> list[float]:
        """Milliseconds of each row alone."""
        return self.ask({"measure": "latencies", "model": model})

    def throughput(self, model: str, batch_sizes: Sequence[int] = (1, 8, 32), *, tokens_at_once: int = 0) -> float:
        """Rows per second at the best batch size, with at most so many tokens in a batch, where that is not 0."""
        limits = {"batch_sizes": list(batch_sizes), "tokens_at_once": tokens_at_once}
        return self.ask({"measure": "throughput", "model": model, **limits})

    def grid(self, model: str, shapes: Sequence[tuple[int, int]]) -> list[dict[str, float]]:
        """``batch``, ``length``, ``p50_ms`` and ``rows_per_s`` of each shape."""
        return self.ask({"measure": "grid", "model": model, "shapes": [list(shape) for shape in shapes]})

    def generation(self, model: str, contexts: Sequence[int]) -> list[dict[str, float]]:
        """Of each context ``prefill_per_s``, ``decode_per_s``, ``first_token_ms`` and ``memory_mb`` of a decoder."""
        return self.ask({"measure": "generation", "model": model, "contexts": list(contexts)})

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()


def graphs(files: Sequence[Path], feeds: Mapping[str, Mapping[str, Any]], *, threads: int) -> list[float]:
    """Times ONNX graphs on the CPU, each alone, in a process of their own: milliseconds of each.

    Args:
        feeds: by input name ``shape``, ``dtype`` and ``high``, below which random whole numbers are drawn, to which
            ``low`` is added; a graph gets those that it has.
    """
    from tasks.ml.runtime import sessions  # not by those who only read what was measured

    with Probe(models={}, runtime="onnx", provider=sessions.CPU, threads=threads) as one:
        return one.ask({"measure": "graphs", "files": list(map(str, files)), "feeds": feeds, "threads": threads})


def interleaved(
    probes: Mapping[str, Probe], *, rounds: int, announce: Callable[[int], None] = lambda number: None
) -> dict[str, list[list[float]]]:
    """Times every model once a round, in turn: name → rounds → milliseconds of each row.

    Args:
        probes: the process that holds each model, by the model's name.
        announce: told the number of each round, from 0, when it begins.
    """
    measured: dict[str, list[list[float]]] = {name: [] for name in probes}
    for number in range(rounds):
        announce(number)
        for name, one in probes.items():
            measured[name].append(one.latencies(name))
    return measured


def generations(probes: Mapping[str, Probe], contexts: Sequence[int], *, rounds: int) -> list[dict[str, Any]]:
    """Times the generation of every decoder once a round, in turn.

    Args:
        contexts: tokens that are read before.

    Returns:
        Of each model and context ``stage``, ``context``, and of what ``Probe.generation`` measures the medians over
        rounds.
    """
    rounded: dict[str, list[list[dict[str, float]]]] = {name: [] for name in probes}
    for _ in range(rounds):
        for name, one in probes.items():
            rounded[name].append(one.generation(name, contexts))
    return [
        {"stage": name, "context": context}
        | {key: float(np.median([cell[key] for cell in cells])) for key in cells[0] if key != "context"}
        for name, found in rounded.items()
        for context, cells in zip(contexts, zip(*found, strict=True), strict=True)
    ]


@dataclass(frozen=True)
class Pace:
    """How fast a model was, round by round."""

    latency_rounds_ms: tuple[float, ...]
    """p50 of one sentence, of each round."""
    throughput_rounds_per_s: tuple[float, ...]
    """Rows per second in batches, of each round."""

    @property
    def latency_p50_ms(self) -> float:
        """Median over rounds."""
        return float(np.median(self.latency_rounds_ms))

    @property
    def throughput_per_s(self) -> float:
        """Median over rounds."""
        return float(np.median(self.throughput_rounds_per_s))


def paces(probes: Mapping[str, Probe], *, rounds: int, batch_size: int, tokens_at_once: int = 0) -> dict[str, Pace]:
    """Times every model in turn: each round asks all for single sentences, then all for batches, of at most so many
    tokens where that is not 0."""
    latencies: dict[str, list[float]] = {name: [] for name in probes}
    rates: dict[str, list[float]] = {name: [] for name in probes}
    for _ in range(rounds):
        for name, one in probes.items():
            latencies[name].append(float(np.median(one.latencies(name))))
        for name, one in probes.items():
            rates[name].append(one.throughput(name, (batch_size,), tokens_at_once=tokens_at_once))
    return {name: Pace(tuple(latencies[name]), tuple(rates[name])) for name in probes}


def write_paces(path: Path, found: Sequence[Pace]) -> None:
    """Writes how fast models were as JSON."""
    path.write_text(json.dumps([asdict(pace) for pace in found], indent=1), encoding="utf-8")


def read_paces(path: Path) -> list[Pace]:
    """Reads what ``write_paces`` wrote."""
    return TypeAdapter(list[Pace]).validate_json(path.read_bytes())


def summary(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Percentiles over all rounds, and the median of each round, which shows how far the machine wavered."""
    p50, p95, p99 = np.percentile(np.concatenate([np.asarray(times) for times in rounds]), [50, 95, 99])
    return {
        "latency_p50_ms": float(p50),
        "latency_p95_ms": float(p95),
        "latency_p99_ms": float(p99),
        "latency_p50_rounds_ms": [float(np.median(times)) for times in rounds],
    }


def grid_shapes(max_length: int, *, tokens_at_once: int = 0) -> list[tuple[int, int]]:
    """Batches of 1, 8 and 32 rows of 16, 32, 64 … tokens, up to the longest text, and to so many tokens of a batch
    where that is not 0."""
    lengths = [length for length in (16, 32, 64, 128, 256, 512) if length <= max_length] or [max_length]
    shapes = [(batch, length) for batch in (1, 8, 32) for length in lengths]
    return [(batch, length) for batch, length in shapes if not tokens_at_once or batch * length <= tokens_at_once]


def contexts(positions: int) -> list[int]:
    """Lengths of ``CONTEXTS`` that leave room for what is generated, in a model of so many positions."""
    return sorted({max(1, min(length, positions - probe.GENERATED)) for length in CONTEXTS})

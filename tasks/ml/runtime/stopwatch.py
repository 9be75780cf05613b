"""A clean process that times ONNX graphs, one session at a time: ``python -m tasks.ml.runtime.stopwatch``.

Reads one JSON document (``models``: files; ``feeds``: shape, type and largest value of each input by name;
``threads``) and writes the list of each model's milliseconds. It loads neither torch nor transformers,
whose threads would spin beside the sessions, and takes a session down before the next one is made.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.ml.runtime import sessions

ROUNDS = 3
SECONDS = 0.03
"""Of one round of one model, if ``MIN_RUNS`` runs do not take longer."""
MIN_RUNS = 15
WARM_RUNS = 5


def milliseconds(models: Sequence[Path], feeds: Mapping[str, Mapping[str, Any]], *, threads: int) -> list[float]:
    """Times models in a process of their own: per model the lowest of the medians of the rounds.

    What other work on the machine does to a timing is to lengthen it, so the round that it disturbed least counts.

    Args:
        feeds: by input name ``shape``, ``dtype`` and ``high``, below which random whole numbers are drawn; a model
            gets those that it has.
    """
    question = {
        "models": [str(model) for model in models],
        "feeds": {name: dict(feed) for name, feed in feeds.items()},
        "threads": threads,
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    if done.returncode:
        raise RuntimeError(f"the timing process ended with {done.returncode}: {done.stderr[-2000:]}")
    return list(json.loads(done.stdout))


def _median(model: str, arrays: Mapping[str, np.ndarray], *, threads: int) -> float:
    session = sessions.open_session(Path(model), provider=sessions.CPU, threads=threads)
    feed = {one.name: arrays[one.name] for one in session.get_inputs()}
    for _ in range(WARM_RUNS):
        session.run(None, feed)
    times: list[float] = []
    while len(times) < MIN_RUNS or sum(times) < SECONDS:
        started = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def main() -> None:
    question = json.load(sys.stdin)
    generator = np.random.default_rng(0)
    arrays = {
        name: (generator.integers(0, feed["high"], feed["shape"]) + feed.get("low", 0)).astype(feed["dtype"])
        for name, feed in question["feeds"].items()
    }
    rounds = [
        [_median(model, arrays, threads=question["threads"]) for model in question["models"]] for _ in range(ROUNDS)
    ]
    json.dump([min(times) for times in zip(*rounds, strict=True)], sys.stdout)


if __name__ == "__main__":
    main()

"""Training in several processes: ``agent`` starts them, each is a ``worker``, they read the same lesson from a job.

A job is a directory with ``job.json``, the lesson, the model and, in the end, the result.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml import machine
from tasks.ml.jobs.lessons import Lesson
from tasks.ml.models import modeling
from tasks.ml.training import trainer

ROOT = Path(__file__).parents[3]
EVENTS, RESULT, LOG = "events.jsonl", "result.json", "log.txt"
POLL = 0.2
"""Seconds between looks at what the workers report."""
PATIENCE = 10.0
"""Seconds that workers get to end before they are killed."""
LOG_KEPT = 3000
"""Characters of a dead worker's log that the error shows."""
ERRORS: dict[str, type[Exception]] = {e.__name__: e for e in (FloatingPointError, FeatherweightError)}
"""What a worker can say that its parent says again."""


def most_processes() -> int:
    """How many processes can each have a GPU of this machine, or a core where it has none."""
    return torch.cuda.device_count() or machine.num_cores()


def write_job(
    job: Path,
    model: nn.Module,
    lesson: Lesson,
    *,
    for_model: Mapping[str, Any],
    for_trainer: Mapping[str, Any],
    checkpoint: Path | None,
) -> Path:
    """Writes all that workers need into an existing directory, and returns it."""
    for name in ("model", "lesson"):
        (job / name).mkdir()
    modeling.save_model(model, job / "model")
    lesson.write(job / "lesson")
    about = {
        "problem": lesson.problem,
        "for_model": dict(for_model),
        "for_trainer": dict(for_trainer),
        "checkpoint": str(checkpoint.absolute()) if checkpoint else None,
    }
    (job / "job.json").write_text(json.dumps(about), encoding="utf-8")
    return job


def read_result(job: Path, model: nn.Module) -> trainer.History:
    """Puts the trained weights of a finished job into the model.

    Raises:
        FloatingPointError: a loss or gradient was not finite.
        FeatherweightError: a worker said so, or died; the message holds the end of its log.
    """
    result = json.loads((job / RESULT).read_text(encoding="utf-8")) if (job / RESULT).is_file() else {}
    if "error" in result:
        raise ERRORS[result["error"]](result["message"])
    if "history" not in result:
        log = (job / LOG).read_text(encoding="utf-8", errors="replace")
        raise FeatherweightError("num_processes: a worker died without a result:", *log[-LOG_KEPT:].splitlines())
    modeling.load_weights(model, job / "model")
    model.eval()
    return trainer.History(**result["history"])


def command(job: Path, options: Sequence[str]) -> list[str]:
    """The command that starts the workers of a job on one machine, with these options of torchrun."""
    return [sys.executable, "-m", "tasks.ml.jobs.agent", *options, str(job)]


@contextmanager
def agent(job: Path, options: Sequence[str], threads: int) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the agent of a job; it takes its workers with it, however it ends."""
    environment = {**machine.environment(), "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    with (job / LOG).open("wb") as log:
        process = subprocess.Popen(command(job, options), env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            process.kill()
        process.wait()


def _pass_on(events: Path, position: int, observer: trainer.Observer) -> int:
    """Hands whole lines from a position of the file to the observer; returns the position after them."""
    if not events.is_file():
        return position
    with events.open("rb") as file:
        file.seek(position)
        for line in file:
            if not line.endswith(b"\n"):
                break
            position += len(line)
            event = json.loads(line)
            getattr(observer, event.pop("event"))(**event)
    return position


def learn(
    model: nn.Module,
    lesson: Lesson,
    *,
    num_processes: int,
    for_model: Mapping[str, Any],
    observer: trainer.Observer,
    checkpoint: Path | None,
    **for_trainer: Any,
) -> trainer.History:
    """Trains a model in place, as ``Lesson.learn`` does, in several processes on this machine.

    Each computes its share of every batch, or of every layer, with its share of the cores; gradients are averaged over
    all rows of the batch, so that the batch is as large as in one process.

    Args:
        num_processes: at most; no two share a GPU where there are any.

    Raises:
        FloatingPointError: a loss or gradient was not finite.
        FeatherweightError: a worker said so, or died; the message holds the end of its log.
    """
    num_processes = min(num_processes, torch.cuda.device_count() or num_processes)
    with tempfile.TemporaryDirectory(prefix="featherweight-job-") as folder:
        job = write_job(
            Path(folder), model, lesson, for_model=for_model, for_trainer=for_trainer, checkpoint=checkpoint
        )
        threads = max(1, torch.get_num_threads() // num_processes)
        options = ["--standalone", "--nproc-per-node", str(num_processes)]
        position = 0
        with agent(job, options, threads) as process:
            while process.poll() is None:
                time.sleep(POLL)
                position = _pass_on(job / EVENTS, position, observer)
            _pass_on(job / EVENTS, position, observer)
        history = read_result(job, model)
        history.notes["num_processes"] = num_processes
        return history

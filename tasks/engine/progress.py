"""Progress of long work: a bar on the terminal, a progress artifact in Prefect's run page, curves in MLflow."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from tqdm import tqdm

from tasks.engine import tracking

logger = logging.getLogger("featherweight")

SECONDS_BETWEEN_LOGS = 20.0
"""How often a run without a terminal says how far it is."""
SECONDS_BETWEEN_UPDATES = 5.0
"""How often the run page learns how far a stage is."""


class Live:
    """How far a stage is, in the run page of Prefect's UI; a server that does not listen is not worth failing for."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.artifact: UUID | None = None
        self.spoke = -float("inf")

    def update(self, fraction: float, description: str) -> None:
        """Shows the fraction done and a line about it, unless it did so a moment ago and more is to come."""
        now = time.monotonic()
        if now - self.spoke < SECONDS_BETWEEN_UPDATES and fraction < 1:
            return
        self.spoke = now
        try:
            if self.artifact is None:
                created = create_progress_artifact(
                    100 * fraction, key=f"{self.title}-progress", description=description
                )
                self.artifact = cast(UUID, created)  # a coroutine only where an event loop runs
            else:
                update_progress_artifact(self.artifact, 100 * fraction, description=description)
        except Exception as error:  # whatever a network may do
            logger.warning("%s: its progress could not be shown in Prefect: %s", self.title, error)


class TrainingProgress:
    """An ``Observer`` of ``tasks.ml.training.trainer``: shows loss, rows per second, time left; logs curves."""

    def __init__(self, title: str, metric: str) -> None:
        self.title, self.metric, self.run, self.live = title, metric, tracking.current(), Live(title)
        self.bar: tqdm[None] | None = None
        self.total, self.first, self.started, self.spoke = 0, 0, 0.0, 0.0
        # A run that was interrupted logged some steps after its last checkpoint, which are taken again now.
        self.logged, self.evaluated = self.run.last_step("loss"), self.run.last_step(f"selection_{metric}")

    def start(self, *, total_steps: int, first_step: int) -> None:
        self.total, self.first = total_steps, first_step
        self.started = self.spoke = time.monotonic()
        if first_step:
            logger.info("%s: resuming at step %d of %d", self.title, first_step, total_steps)
        self.bar = tqdm(
            total=total_steps, initial=first_step, desc=self.title, unit="step", leave=False, dynamic_ncols=True,
            disable=not sys.stderr.isatty(), file=sys.stderr,
        )  # fmt: skip

    def step(self, step: int, point: Mapping[str, float]) -> None:
        assert self.bar is not None
        self.bar.update(step - self.bar.n if not self.bar.disable else 0)
        self.bar.set_postfix_str(f"loss {point['loss']:.3f}, {point['samples_per_s']:.0f} samples/s")
        if step > self.logged:
            self.run.metrics(point, step=step)
        now = time.monotonic()
        left = (now - self.started) / (step - self.first) * (self.total - step)
        line = (
            f"step {step} of {self.total}, loss {point['loss']:.3f}, "
            f"{point['samples_per_s']:.0f} samples/s, {left:.0f} s left"
        )
        self.live.update(step / self.total, line)
        if self.bar.disable and now - self.spoke > SECONDS_BETWEEN_LOGS:
            self.spoke = now
            logger.info("%s: %s", self.title, line)

    def evaluation(self, step: int, point: Mapping[str, float]) -> None:
        if step > self.evaluated:
            time_of, names = ("epoch", "training_s"), {"quality": self.metric}
            shown = {f"selection_{names.get(key, key)}": one for key, one in point.items() if key not in time_of}
            self.run.metrics(shown, step=step)
        logger.info(
            "%s: step %d of %d, selection %s %.4f, loss %.4f",
            self.title, step, self.total, self.metric, point["quality"], point["loss"],
        )  # fmt: skip


@contextmanager
def training(title: str, metric: str) -> Iterator[TrainingProgress]:
    """Yields an observer for ``trainer.fit``, whose quality is called so, and clears its bar at the end."""
    progress = TrainingProgress(title, metric)
    try:
        yield progress
    finally:
        if progress.bar is not None:
            progress.bar.close()

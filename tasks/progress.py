"""Progress of long work: a bar on the terminal, curves in MLflow. An ``Observer`` of ``tasks.ml.trainer``."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tqdm import tqdm

from tasks import tracking

logger = logging.getLogger("featherweight")

SECONDS_BETWEEN_LOGS = 20.0
"""How often a run without a terminal says how far it is."""


class TrainingProgress:
    """Shows loss, rows per second and time left; logs the points of the curves to the stage's MLflow run."""

    def __init__(self, title: str) -> None:
        self.title, self.run = title, tracking.current()
        self.bar: tqdm[None] | None = None
        self.total, self.first, self.started, self.spoke = 0, 0, 0.0, 0.0

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
        self.run.metrics(point, step=step)
        now = time.monotonic()
        if self.bar.disable and now - self.spoke > SECONDS_BETWEEN_LOGS:
            self.spoke = now
            left = (now - self.started) / (step - self.first) * (self.total - step)
            logger.info(
                "%s: step %d of %d, loss %.3f, %.0f samples/s, %.0f s left",
                self.title, step, self.total, point["loss"], point["samples_per_s"], left,
            )  # fmt: skip

    def evaluation(self, step: int, point: Mapping[str, float]) -> None:
        self.run.metrics({f"selection_{name}": value for name, value in point.items() if name != "epoch"}, step=step)
        logger.info(
            "%s: step %d of %d, selection accuracy %.4f, loss %.4f",
            self.title, step, self.total, point["accuracy"], point["loss"],
        )  # fmt: skip


@contextmanager
def training(title: str) -> Iterator[TrainingProgress]:
    """Yields an observer for ``trainer.fit`` and clears its bar at the end."""
    progress = TrainingProgress(title)
    try:
        yield progress
    finally:
        if progress.bar is not None:
            progress.bar.close()

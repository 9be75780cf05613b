"""Work and timings on one machine: work goes side by side, a timing alone.

Whoever works holds a lock shared, whoever takes a timing holds it alone. The queue in front of it is passed one by one,
so that work which goes on for ever does not keep a timing waiting for ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pydantic import Field

from tasks.contracts.base import PlainText, StageConfig
from tasks.engine import disk
from tasks.ml import machine

BATCH = 16
"""Rows at once that throughput is measured with."""


class TimingConfig(StageConfig):
    """Where and how long models are timed."""

    device: PlainText = Field("auto", pattern="^(auto|cpu|cuda)$", title="Device", description="auto, cpu or cuda.")
    threads: int = Field(0, ge=0, le=1024, title="Threads", description="CPU threads; 0 takes all cores.")
    repeats: int = Field(15, ge=3, le=100, title="Repeats", description="Timing rounds.")
    sentences: int = Field(100, ge=10, le=10000, title="Sentences", description="Real sentences timed per round.")


def _name(part: str) -> str:
    """Of this machine, as long as it runs: a home may lie on a disk that several share, and containers share one."""
    return f"{part}-{machine.boot_id()}"


@contextlib.contextmanager
def work() -> Iterator[None]:
    """Keeps timings away while the block runs; waits for one that is being taken, or that has waited longer."""
    with contextlib.ExitStack() as held:
        with disk.lock(_name("queue")):
            held.enter_context(disk.lock(_name("machine"), shared=True))
        yield


@contextlib.contextmanager
def timing() -> Iterator[None]:
    """Keeps work and other timings away while the block runs. The same thread must not be at ``work``."""
    with disk.lock(_name("queue")), disk.lock(_name("machine")):
        yield

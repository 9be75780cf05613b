"""Work goes side by side, a timing alone, and no timing waits for work that began after it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tasks.engine import quiet


def started(block: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=block, daemon=True)
    thread.start()
    return thread


def test_work_goes_side_by_side() -> None:
    together = threading.Barrier(2, timeout=10)

    def worker() -> None:
        with quiet.work():
            together.wait()

    threads = [started(worker) for _ in range(2)]
    for thread in threads:
        thread.join(10)
    assert not together.broken


def test_a_timing_waits_for_work_and_later_work_for_the_timing() -> None:
    order: list[str] = []
    at_work, may_end = threading.Event(), threading.Event()

    def first() -> None:
        with quiet.work():
            at_work.set()
            may_end.wait(10)
            order.append("work")

    def timing() -> None:
        with quiet.timing():
            order.append("timing")

    def later() -> None:
        with quiet.work():
            order.append("later work")

    one = started(first)
    at_work.wait(10)
    two = started(timing)
    two.join(0.2)  # it is in the queue now, and cannot get through
    three = started(later)
    three.join(0.2)
    assert order == []
    may_end.set()
    for thread in (one, two, three):
        thread.join(10)
    assert order == ["work", "timing", "later work"]

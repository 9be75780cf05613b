"""The machine: what a measurement was taken on, and who ends with whom. Imports nothing heavy."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Lets this process be terminated when the one that started it is killed, instead of going on unseen (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def cpu_model() -> str:
    """Marketing name of the processor, as the kernel gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(workers: int) -> int:
    """Leaves torch in this process the cores that are its share among so many workers; returns how many."""
    import torch

    share = max(1, num_cores() // workers)
    torch.set_num_threads(share)
    return share


def identity() -> str:
    """One line that changes when timings may not be compared any more."""
    return f"{cpu_model()} × {num_cores()}"


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/self/status has no {field}")


def resident_memory_mb() -> float:
    """Resident set of this process, in 10^6 bytes."""
    return _status("VmRSS")


def peak_memory_mb() -> float:
    """Highest resident set of this process since it was executed, in 10^6 bytes.

    From ``VmHWM``: ``ru_maxrss`` survives exec, so a child would report its parent's peak.
    """
    return _status("VmHWM")


def forget_peak_memory() -> None:
    """Lets ``peak_memory_mb`` begin anew at what is resident now (proc(5), ``clear_refs``)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def return_freed_memory() -> None:
    """Gives back to the system what this process freed and its C library kept, if that is glibc (malloc_trim(3))."""
    if hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


class Company:
    """How busy other processes keep this machine, from its making to each call."""

    def __init__(self) -> None:
        self._started, self._others = time.monotonic(), self._other_seconds()

    @staticmethod
    def _other_seconds() -> float:
        """Seconds that cores were not idle (proc(5), ``stat``; of a virtual machine also withheld), less our own
        and those of children that have ended."""
        ticks = [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]]
        user, nice, system, _idle, _waiting, irq, softirq, steal = ticks
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])

    def share(self) -> float:
        """Fraction of all cores' time that went to others, 0 to 1."""
        passed = (time.monotonic() - self._started) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, (self._other_seconds() - self._others) / passed)) if passed else 0.0

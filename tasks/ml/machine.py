"""The machine: what a measurement was taken on, and who ends with whom. Imports nothing heavy."""

from __future__ import annotations

import ctypes
import functools
import gc
import math
import os
import platform
import signal
import sys
import time
from pathlib import Path

ROOT = Path("/")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


_library = functools.cache(lambda: ctypes.CDLL(None))
"""The C library; once loaded it can also be called between fork and exec."""

DISPATCHED = (
    "sse4_1", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "avx_vnni", "avx_vnni_int8", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "svei8mm", "svebf16", "sme",
)  # fmt: skip
"""CPU flags by which torch, oneDNN and ONNX Runtime choose their kernels, as the Linux kernel calls them."""

INTEGER_KERNELS = (
    ("amx_int8", "AMX int8"),
    ("avx512_vnni", "AVX-512 VNNI"),
    ("avx_vnni", "AVX-VNNI"),
    ("avx512bw", "AVX-512 without VNNI"),
    ("avx2", "AVX2 without VNNI"),
    ("i8mm", "ARM i8mm"),
    ("asimddp", "ARM dot product"),
    ("asimd", "ARM NEON without dot product"),
)
"""The flag that decides which kernels multiply 8-bit integers, best first, and their name."""
INTEGER_PRODUCTS = {"amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp"}
"""Those of them that are instructions for such products, which int8 models draw their speed from."""

CEILINGS = ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "CUDA_VISIBLE_DEVICES")
"""Variables that keep libraries from what the machine has."""


def end_with_parent() -> None:
    """Lets this process be terminated when the one that started it is killed, instead of going on unseen (Linux)."""
    if sys.platform == "linux":
        _library().prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def adopt_orphans(adopt: bool = True) -> None:
    """Makes processes below this one its children when the one that started them ends, instead of init's (Linux)."""
    if sys.platform == "linux":
        _library().prctl(PR_SET_CHILD_SUBREAPER, int(adopt))


def environment() -> dict[str, str]:
    """A copy of the environment, from which another thread may take a variable meanwhile, as MLflow does while it logs
    a model: ``os.environ.copy()`` raises ``KeyError`` then."""
    return {name: value for name in list(os.environ) if (value := os.environ.get(name)) is not None}


def give_back_memory() -> None:
    """Returns to the system what this process no longer uses: glibc keeps what was freed, and a process that trained
    would hold as much as training took to its end (malloc_trim(3))."""
    gc.collect()
    if hasattr(_library(), "malloc_trim"):
        _library().malloc_trim(0)


def boot_id() -> str:
    """Names what all processes of a machine share, those of its containers, too: the kernel since it was started."""
    said = Path("/proc/sys/kernel/random/boot_id")
    return said.read_text(encoding="ascii").strip() if said.is_file() else platform.node()


@functools.cache
def _cpu_info(root: Path) -> dict[str, str]:
    """What the kernel says of the first processor (proc(5), ``cpuinfo``)."""
    info = root / "proc" / "cpuinfo"
    first = info.read_text(encoding="utf-8").partition("\n\n")[0] if info.is_file() else ""
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


def cpu_model() -> str:
    """Marketing name of the processor, as the kernel gives it."""
    return _cpu_info(ROOT).get("model name") or platform.processor() or platform.machine()


def instruction_sets() -> tuple[str, ...]:
    """Instruction sets of this processor that kernels are chosen by, in the order of ``DISPATCHED``."""
    info = _cpu_info(ROOT)
    flags = {*info.get("flags", "").split(), *info.get("Features", "").split()}
    return tuple(name for name in DISPATCHED if name in flags)


def kernels() -> str:
    """Which kernels multiply 8-bit integers here, in words: ``AVX-512 VNNI``, ``AVX2 without VNNI``, …"""
    here = instruction_sets()
    return next((words for flag, words in INTEGER_KERNELS if flag in here), "no vector instructions that are known")


def multiplies_integers() -> bool:
    """Whether there are instructions for 8-bit products."""
    return not INTEGER_PRODUCTS.isdisjoint(instruction_sets())


def _quota() -> float:
    """Cores' worth of time that the control groups of this process allow (cgroups(7), both versions)."""
    allowed, said = math.inf, ROOT / "proc" / "self" / "cgroup"
    for line in said.read_text(encoding="utf-8").splitlines() if said.is_file() else ():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container, the group may be named as the host sees it, while its files lie at the top.
        top = ROOT / "sys" / "fs" / "cgroup" / controllers
        place = top / group.lstrip("/")
        allowed = min(allowed, *(_limit(folder) for folder in (place, *place.parents) if folder.is_relative_to(top)))
    return allowed


def _limit(group: Path) -> float:
    """Cores' worth of time that one control group allows."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (group / f"cpu.cfs_{name}_us").read_text(encoding="ascii").strip() for name in ("quota", "period")
            )
        return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> float:
    """Cores' worth of time that this process may use, by its affinity and by its container's limit."""
    return min(_affinity(), _quota())


def num_cores() -> int:
    """Threads that this process can keep busy: one more than its container's limit would hold all of them up."""
    return max(1, int(usable_cores()))


def keep_to_limits() -> None:
    """Lets OpenMP, and with it torch and NumPy, start no more threads than a container's limit keeps busy, here and in
    children; to be called before they are imported. What the user has set stands."""
    if num_cores() < _affinity():
        os.environ.setdefault("OMP_NUM_THREADS", str(num_cores()))


def share_cores(workers: int) -> int:
    """Leaves torch in this process the cores that are its share among so many workers; returns how many."""
    import torch

    share = max(1, num_cores() // workers)
    torch.set_num_threads(share)
    return share


@functools.cache
def gpus() -> tuple[str, ...]:
    """The NVIDIA GPUs of this machine and their driver, as NVML names them; nothing where it is not there."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return ()
    if library.nvmlInit_v2():
        return ()
    text, count, device = ctypes.create_string_buffer(96), ctypes.c_uint(), ctypes.c_void_p()
    found = []
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    for index in range(count.value):
        library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device))
        library.nvmlDeviceGetName(device, text, len(text))
        found.append(text.value.decode())
    library.nvmlSystemGetDriverVersion(text, len(text))
    library.nvmlShutdown()
    return (*found, f"driver {text.value.decode()}") if found else ()


def description() -> str:
    """The machine in a line for people."""
    return f"{cpu_model()} × {usable_cores():g}, {kernels()}"


def identity() -> str:
    """One line that changes with all that a number which is measured here depends on, but for software.

    Name and model number of the processor, the cores that this process may use, the instruction sets that kernels are
    chosen by, GPUs with their driver, and what keeps libraries from using them.
    """
    numbers = ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant")
    info = _cpu_info(ROOT)
    return ", ".join(
        (
            f"{cpu_model()} × {usable_cores():g}",
            *(f"{name} {info[name]}" for name in numbers if name in info),
            " ".join(instruction_sets()),
            *gpus(),
            *(f"{name}={os.environ[name]}" for name in CEILINGS if name in os.environ),
        )
    )


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

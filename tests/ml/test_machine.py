"""What a machine is, on machines that are described by a few files: its cores, its kernels, and what tells it apart."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from tasks.ml import machine
from tasks.serving import predictor

ZEN_4 = "fpu sse4_1 avx f16c fma avx2 avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16"
ZEN_2 = "fpu sse4_1 avx f16c fma avx2"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "_affinity", lambda: 8)
    monkeypatch.setattr(machine, "gpus", tuple)
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")


def describe(root: Path, flags: str, *, name: str = "AMD EPYC", family: int = 25) -> str:
    machine._cpu_info.cache_clear()
    processor = f"processor\t: 0\nmodel name\t: {name}\ncpu family\t: {family}\nflags\t\t: {flags}\n\n"
    write(root, {"proc/cpuinfo": processor + processor.replace(": 0", ": 1")})
    return machine.identity()


def test_machines_of_one_name_with_other_instruction_sets_are_others(root: Path) -> None:
    with_vnni, without = describe(root, ZEN_4), describe(root, ZEN_2)
    assert with_vnni != without
    assert describe(root, ZEN_4 + " rdpid") == with_vnni, "no kernel is chosen by that"
    assert describe(root, ZEN_4, family=26) != with_vnni


def test_cores_gpus_and_what_hides_them_tell_machines_apart(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [describe(root, ZEN_2)]
    monkeypatch.setattr(machine, "_affinity", lambda: 4)
    found.append(machine.identity())
    write(root, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"})
    found.append(machine.identity())
    monkeypatch.setattr(machine, "gpus", lambda: ("NVIDIA H200", "driver 570.1"))
    found.append(machine.identity())
    monkeypatch.setattr(machine, "gpus", lambda: ("NVIDIA H200", "driver 580.1"))
    found.append(machine.identity())
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    found.append(machine.identity())
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("flags", "words", "integers"),
    [
        (ZEN_4 + " amx_int8", "AMX int8", True),
        (ZEN_4, "AVX-512 VNNI", True),
        (ZEN_2 + " avx_vnni", "AVX-VNNI", True),
        (ZEN_2 + " avx512bw", "AVX-512 without VNNI", False),
        (ZEN_2, "AVX2 without VNNI", False),
        ("fpu", "no vector instructions that are known", False),
    ],
)
def test_the_kernels_in_words(flags: str, words: str, integers: bool, root: Path) -> None:
    describe(root, flags)
    assert machine.kernels() == words
    assert machine.multiplies_integers() is integers
    assert machine.description() == f"AMD EPYC × 8, {words}"


def test_an_arm_processor_has_features(root: Path) -> None:
    machine._cpu_info.cache_clear()
    write(root, {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n"})
    assert machine.kernels() == "ARM dot product"
    assert "CPU part 0xd0c" in machine.identity()


V1 = "4:memory:/jobs\n1:cpu:/jobs/one\n0::/\n"


@pytest.mark.parametrize(
    ("files", "usable", "threads"),
    [
        ({}, 8, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5, 1),
        (
            {
                "proc/self/cgroup": "0::/pod/one\n",
                "sys/fs/cgroup/pod/cpu.max": "200000 100000",
                "sys/fs/cgroup/pod/one/cpu.max": "max 100000",
            },
            2,
            2,
        ),
        ({"proc/self/cgroup": "0::/elsewhere\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3, 3),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/jobs/one/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/jobs/one/cpu.cfs_period_us": "50000",
            },
            2,
            2,
        ),
        (
            {
                "proc/self/cgroup": V1.replace("cpu:", "cpu,cpuacct:"),
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
            4,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            8,
            8,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8, 8),
    ],
)
def test_a_containers_limit_decides_how_many_threads(
    files: dict[str, str], usable: float, threads: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, files)
    assert machine.usable_cores() == usable
    assert machine.num_cores() == threads
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert predictor.num_cores(root) == threads, "a bundle is served with as many as it was measured with"
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    machine.keep_to_limits()
    assert os.environ.get("OMP_NUM_THREADS") == (str(threads) if threads < 8 else None)


def test_this_machine_is_described() -> None:
    machine._cpu_info.cache_clear()
    assert machine.num_cores() <= len(os.sched_getaffinity(0))
    assert machine.kernels() in machine.description()
    assert machine.cpu_model() in machine.identity()


def test_the_environment_is_read_while_another_thread_changes_it() -> None:
    ends = threading.Event()

    def change() -> None:
        while not ends.is_set():
            os.environ["FEATHERWEIGHT_TEST_THAT_COMES_AND_GOES"] = "there"
            del os.environ["FEATHERWEIGHT_TEST_THAT_COMES_AND_GOES"]

    thread = threading.Thread(target=change)
    thread.start()
    try:
        assert all(machine.environment()["PATH"] for _ in range(30_000))
    finally:
        ends.set()
        thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc keeps what is freed")
def test_what_was_freed_goes_back_to_the_system() -> None:
    """Blocks small enough to come from the heap, the last of which is still there: nothing shrinks by itself."""

    def resident() -> int:
        said = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(said) * os.sysconf("SC_PAGE_SIZE")

    held = [bytearray(b"x") * 100_000 for _ in range(2_000)]
    last = held.pop()
    full = resident()
    del held
    machine.give_back_memory()
    assert full - resident() > 150_000_000
    assert len(last) == 100_000

"""Runs a command with an ONNX Runtime that takes this processor for one with AVX2 alone, at full speed.

    infra/run python tests/benchmarks/without_vnni.py infra/run featherweight demo

No setting of the runtime leaves instructions out, and an emulator takes an hour for what this takes minutes for. So the
installed package is copied to a temporary folder, and in the copy the three tests by which its kernels are chosen, for
AVX-512, AVX-VNNI and AMX, are made to find none. x86-64 Linux only. Before the command runs, the copy has to give the
answer of a product that saturates without VNNI. PyTorch is told the same by its own settings.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnxruntime

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.ml.graph import answers_elsewhere

SETTINGS = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
CHOICE = re.compile(
    rb"\x0f\xa2\xa8(?P<avx_vnni>\x10)"  # cpuid, leaf 7.1; test al, 16
    rb".{0,80}?\xf7[\xc0-\xc7]\x00\x00(?P<avx512>\x01)\x00",  # test of bit 16 of ebx, leaf 7
    re.DOTALL,
)
NEARBY = 512
"""Bytes of code from there to the third test."""
AMX = re.compile(rb"\x81[\xe0-\xe7]\x00\x00\x00\x03.{0,8}?(?P<unless>\x0f\x85)", re.DOTALL)
"""A jump over its kernels unless bits 24 and 25 of edx, leaf 7, are both set."""
ALWAYS = b"\x90\xe9"
"""The same jump whatever they are."""
ANY_CODES = 2 * 127
"""What two neighbouring codes may come to at the most; half of it is exact on every processor."""


def _saturates(command: Sequence[str]) -> bool:
    """Whether products of any codes come out wrong in a process that a command begins."""
    asked = answers_elsewhere.ask({}, [], emulator=command, pad_id=0, batch_size=1, bounds=(ANY_CODES,))
    return asked["wrong"] != [0]


def without_vnni(folder: Path) -> tuple[str, ...]:
    """Puts the copy into a folder, and returns what to write before a command that is to import it.

    Raises:
        RuntimeError: the installed runtime does not choose its kernels as is known here.
    """
    if _saturates(()):
        return ()  # this process is one already, or the processor
    package = Path(onnxruntime.__file__).parent
    shutil.copytree(package, folder / package.name, copy_function=os.symlink)
    (library,) = (folder / package.name / "capi").glob("onnxruntime_pybind11_state*.so")
    code = bytearray(library.read_bytes())
    found = list(CHOICE.finditer(code))
    for choice in found:
        for name in ("avx_vnni", "avx512"):
            code[choice.start(name)] = 0
        if third := AMX.search(code, choice.end(), choice.end() + NEARBY):
            code[slice(*third.span("unless"))] = ALWAYS
    library.unlink()  # a link to the installed one
    library.write_bytes(code)
    library.chmod(0o755)
    before = ("env", *(f"{name}={value}" for name, value in {**SETTINGS, "PYTHONPATH": str(folder)}.items()))
    if not _saturates(before):
        raise RuntimeError(f"{len(found)} places were changed, and products of bytes still do not saturate")
    return before


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(subprocess.run([*without_vnni(Path(temporary)), *sys.argv[1:]], check=False).returncode)

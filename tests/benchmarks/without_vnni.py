"""Runs a command with an ONNX Runtime that takes this processor for one with AVX2 alone, at full speed.

    infra/run python tests/benchmarks/without_vnni.py infra/run featherweight demo

No setting of the runtime leaves instructions out, and an emulator takes an hour for what this takes minutes for. So the
installed package is copied to a temporary folder, and in the copy the two tests by which its kernels are chosen, for
AVX-512 and for AVX-VNNI, are made to find neither. x86-64 Linux only. Before the command runs, the copy has to give the
answer of a product that saturates without VNNI. PyTorch is told the same by its own settings.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime

SETTINGS = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
CHOICE = re.compile(
    rb"\x0f\xa2\xa8(?P<avx_vnni>\x10)"  # cpuid, leaf 7.1; test al, 16
    rb".{0,80}?\xf7[\xc0-\xc7]\x00\x00(?P<avx512>\x01)\x00",  # test of bit 16 of ebx, leaf 7
    re.DOTALL,
)
PRODUCT = """
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper
graph = helper.make_graph(
    [helper.make_node("MatMulInteger", ["a", "b"], ["y"])], "product",
    [helper.make_tensor_value_info("a", TensorProto.UINT8, [4, 64])],
    [helper.make_tensor_value_info("y", TensorProto.INT32, [4, 16])],
    [numpy_helper.from_array(np.full((64, 16), 127, np.int8), "b")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
print(session.run(None, {"a": np.full((4, 64), 255, np.uint8)})[0][0, 0])
"""
SATURATED = 32 * (2**15 - 1)


def without_vnni(folder: Path) -> dict[str, str]:
    """Puts the copy into a folder, and returns the environment in which it is imported.

    Raises:
        RuntimeError: the installed runtime does not choose its kernels as is known here.
    """
    if int(_output(PRODUCT, dict(os.environ))) == SATURATED:
        return dict(os.environ)  # this process is one already, or the processor
    package = Path(onnxruntime.__file__).parent
    shutil.copytree(package, folder / package.name, copy_function=os.symlink)
    (library,) = (folder / package.name / "capi").glob("onnxruntime_pybind11_state*.so")
    code = bytearray(library.read_bytes())
    found = list(CHOICE.finditer(code))
    for choice in found:
        for name in ("avx_vnni", "avx512"):
            code[choice.start(name)] = 0
    library.unlink()  # a link to the installed one
    library.write_bytes(code)
    library.chmod(0o755)
    environment = {**os.environ, **SETTINGS, "PYTHONPATH": str(folder)}
    if (answer := int(_output(PRODUCT, environment))) != SATURATED:
        raise RuntimeError(f"{len(found)} places changed; the product is {answer}, not {SATURATED}")
    return environment


def _output(program: str, environment: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(subprocess.run(sys.argv[1:], env=without_vnni(Path(temporary)), check=False).returncode)

"""What the runtime answers on this processor, or on an emulated one: ``python -m tests.ml.graph.answers_elsewhere``.

Reads one JSON document and writes one: logits of ONNX models by a session of the project's and by a plain one, and
products of bytes that saturate where they are added in pairs. Imports no torch, for which emulation takes long.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from tasks.ml.runtime import sessions

ROOT = Path(__file__).parents[3]
HASWELL = ("qemu-x86_64", "-cpu", "Haswell")
"""AVX2 without AVX-512 and VNNI."""
SESSIONS = {
    "ours": lambda path: sessions.open_session(Path(path), provider=sessions.CPU, threads=1),
    "plain": lambda path: ort.InferenceSession(path, providers=[sessions.CPU]),
}


def said(emulator: Sequence[str], *arguments: str, question: dict[str, Any] | None = None) -> dict[str, Any]:
    """The document that Python writes with these arguments, in a process of its own."""
    command = [*emulator, sys.executable, *arguments]
    done = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return dict(json.loads(done.stdout))


def ask(
    models: Mapping[str, Path], rows: Sequence[Sequence[int]], *, emulator: Sequence[str] = (), pad_id: int,
    batch_size: int, kinds: Sequence[str] = tuple(SESSIONS), bounds: Sequence[int] = (),
) -> dict[str, Any]:  # fmt: skip
    """Logits (N, C) by name of a model and kind of a session; ``wrong`` is how many products are for each bound."""
    question = {
        "models": {name: str(path) for name, path in models.items()}, "rows": list(rows), "pad_id": pad_id,
        "batch_size": batch_size, "kinds": kinds, "bounds": bounds,
    }  # fmt: skip
    return said(emulator, "-m", __name__, question=question)


def products(x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """What the runtime makes of activations uint8 (B, K) and codes int8 (K, M)."""
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "codes"], ["y"])],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
        [numpy_helper.from_array(np.ascontiguousarray(codes), "codes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=[sessions.CPU]).run(None, {"x": x})[0]


def wrong(bound: int) -> int:
    """How many products are wrong of codes whose neighbours come to a bound, at the activations that are worst."""
    generator, count = np.random.default_rng(0), 0
    for inputs in (2, 63, 384, 1001):
        first = generator.integers(1, 128, (inputs // 2, 31))
        pairs = np.stack([first, np.minimum(bound - first, 127)], axis=1) * generator.choice(
            [-1, 1], (first.shape[0], 1, 31)
        )
        codes = np.concatenate([pairs.reshape(-1, 31), np.full((inputs % 2, 31), 127)]).astype(np.int8)
        for rows in (1, 4, 7):
            x = np.where(generator.random((rows, inputs)) < 0.9, 255, generator.integers(0, 256, (rows, inputs)))
            count += (products(x.astype(np.uint8), codes) != x @ codes.astype(np.int64)).sum()
    return int(count)


def main() -> None:
    question = json.load(sys.stdin)
    how = {"pad_id": question["pad_id"], "batch_size": question["batch_size"]}
    answers: dict[str, Any] = {"wrong": [wrong(bound) for bound in question["bounds"]]}
    for name, path in question["models"].items():
        opened = {kind: SESSIONS[kind](path) for kind in question["kinds"]}
        answers[name] = {kind: sessions.logits(one, question["rows"], **how).tolist() for kind, one in opened.items()}
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()

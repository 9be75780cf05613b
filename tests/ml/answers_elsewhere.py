"""What the runtime answers on this processor, or on an emulated one: ``python -m tests.ml.answers_elsewhere``.

Reads one JSON document, files of ONNX models and the rows (token ids) of a batch, and writes the logits of each model
by a session of the project's and by a plain one; and products of bytes that saturate where they are added in pairs.
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

from tasks.ml.quantization import simulation
from tasks.ml.runtime import sessions as runtime

HASWELL = ("qemu-x86_64", "-cpu", "Haswell")
"""AVX2 without AVX-512 and VNNI."""


def ask(models: Mapping[str, Path], rows: Sequence[Sequence[int]], *, emulator: Sequence[str] = ()) -> dict[str, Any]:
    """Answers of a process of its own: ``wrong`` products of codes as they are shipped,
    ``wrong_beyond`` of codes that are larger by 1, and by name of a model the logits (B, C) of both sessions."""
    question = {"models": {name: str(path) for name, path in models.items()}, "rows": list(rows)}
    done = subprocess.run(
        [*emulator, sys.executable, "-m", __name__],
        input=json.dumps(question), capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout))


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
    return ort.InferenceSession(model.SerializeToString(), providers=[runtime.CPU]).run(None, {"x": x})[0]


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
    feed = runtime.feed(question["rows"], pad_id=1)
    answers: dict[str, Any] = {"wrong": wrong(simulation.PAIR_MAX), "wrong_beyond": wrong(simulation.PAIR_MAX + 1)}
    for name, path in question["models"].items():
        sessions = {
            "ours": runtime.open_session(Path(path), provider=runtime.CPU, threads=1),
            "plain": ort.InferenceSession(path, providers=[runtime.CPU]),
        }
        answers[name] = {kind: session.run(None, feed)[0].tolist() for kind, session in sessions.items()}
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()

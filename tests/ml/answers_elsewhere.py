"""What the runtime answers on this processor, or on an emulated one: ``python -m tests.ml.answers_elsewhere``.

Reads one JSON document, files of ONNX models and the rows (token ids) of a batch, and writes the logits of each model
by a session of the project's and by a plain one, and a sum of products that saturates where bytes are multiplied in
pairs.
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

from tasks.ml import runtime

HASWELL = ("qemu-x86_64", "-cpu", "Haswell")
"""AVX2 without AVX-512 and VNNI."""

PRODUCTS = 64


def ask(models: Mapping[str, Path], rows: Sequence[Sequence[int]], *, emulator: Sequence[str] = ()) -> dict[str, Any]:
    """Answers of a process of its own: ``saturating``, and by name of a model the logits (B, C) of both sessions."""
    question = {"models": {name: str(path) for name, path in models.items()}, "rows": list(rows)}
    done = subprocess.run(
        [*emulator, sys.executable, "-m", __name__],
        input=json.dumps(question), capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout))


def largest_products() -> int:
    """Sum of 64 products 255 · 127, by the signed bytes that shipped graphs keep away from."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "codes"], ["y"])],
        "products",
        [
            helper.make_tensor_value_info("x", TensorProto.UINT8, [1, PRODUCTS]),
            helper.make_tensor_value_info("codes", TensorProto.INT8, [PRODUCTS, 1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=[runtime.CPU])
    feed = {"x": np.full((1, PRODUCTS), 255, np.uint8), "codes": np.full((PRODUCTS, 1), 127, np.int8)}
    return int(session.run(None, feed)[0][0, 0])


def main() -> None:
    question = json.load(sys.stdin)
    feed = runtime.feed(question["rows"], pad_id=1)
    answers: dict[str, Any] = {"saturating": largest_products()}
    for name, path in question["models"].items():
        sessions = {
            "ours": runtime.open_session(Path(path), provider=runtime.CPU, threads=1),
            "plain": ort.InferenceSession(path, providers=[runtime.CPU]),
        }
        answers[name] = {kind: session.run(None, feed)[0].tolist() for kind, session in sessions.items()}
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()

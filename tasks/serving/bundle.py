"""Builds the serving bundle: a folder that answers with onnxruntime and tokenizers alone.

::

    model.onnx         the graph (and model.onnx.data where the weights are large)
    tokenizer.json     with truncation and padding set as the model was trained
    manifest.json      inputs, outputs, labels, versions, the verdict, and the digest of every other file
    golden.json        texts with the probabilities that they must give
    predictor.py       answers, and tests itself
    README.md          the model card

The same model, verdict and versions give the same bytes: no times, run ids or paths.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import tokenizers

from tasks.contracts import FeatherweightError, Verdict
from tasks.serving import card, predictor

FORMAT = 1
GOLDEN_ROWS = 16
MODEL_FILES = ("model.onnx", "model.onnx.data")
SCALED_AT_RUN_TIME = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul"})
"""Operators that take one scale from a whole batch, so that a row's answer depends on the rows beside it."""


def build(
    directory: Path,
    *,
    source: Path,
    name: str,
    problem: str,
    base_model: str,
    data: str,
    max_length: int,
    texts: Sequence[str],
    validation: dict[str, Any],
    verdict: Verdict | None,
) -> None:
    """Fills an empty directory.

    Args:
        source: the ONNX bundle that ``export`` published.
        name: of the registered model.
        base_model: what the teacher was fine-tuned from, for the card.
        data: what it was fine-tuned on, for the card.
        max_length: tokens after which a text is cut.
        texts: real texts, not from the test split, of which golden rows are taken.
        validation: ``validation.json`` of the stage ``validate``, or as much of the same of another split.
        verdict: ``None`` for a model that was not judged yet.
    """
    for file in MODEL_FILES:
        if (source / file).is_file():
            shutil.copyfile(source / file, directory / file)
    shutil.copyfile(predictor.__file__, directory / "predictor.py")
    model = onnx.load(str(directory / "model.onnx"), load_external_data=False)
    manifest = {
        "format": FORMAT,
        "name": name,
        "problem": problem,
        "labels": _labels(source),
        "max_length": max_length,
        "padding": _tokenizer(source, directory, max_length),
        **_interface(model),
        "batch_invariant": not any(node.op_type in SCALED_AT_RUN_TIME for node in model.graph.node),
        "provider": validation["device"]["provider"],
        "versions": {
            "onnxruntime": onnxruntime.__version__,
            "tokenizers": tokenizers.__version__,
            "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        },
        "verdict": _verdict(verdict),
    }
    _write(directory / "manifest.json", manifest)
    _write(directory / "golden.json", _golden(directory, texts))
    readme = card.render(manifest, base_model=base_model, data=data, validation=validation)
    (directory / "README.md").write_text(readme, encoding="utf-8")
    files = {path.name: _digest(path) for path in sorted(directory.iterdir()) if path.name != "manifest.json"}
    _write(directory / "manifest.json", manifest | {"files": files})


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _labels(source: Path) -> list[str]:
    names = json.loads((source / "config.json").read_text(encoding="utf-8"))["id2label"]
    return [names[key] for key in sorted(names, key=int)]


def _tokenizer(source: Path, directory: Path, max_length: int) -> dict[str, Any]:
    """Writes ``tokenizer.json`` so that it cuts and pads by itself; returns the padding."""
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    token, side = config.get("pad_token"), config.get("padding_side", "right")
    index = tokenizer.token_to_id(token) if token else None
    if index is None:
        raise FeatherweightError(
            f"tokenizer_config.json: pad_token {token!r} is not in the vocabulary; batches need a padding token"
        )
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(direction=side, pad_id=index, pad_token=token)
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    return {"id": index, "token": token, "side": side}


def _interface(model: onnx.ModelProto) -> dict[str, list[dict[str, Any]]]:
    """Name, dtype and shape of every input and output; a string is the name of a dynamic axis."""

    def describe(value: onnx.ValueInfoProto) -> dict[str, Any]:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        return {"name": value.name, "dtype": dtype, "shape": [d.dim_param or d.dim_value for d in tensor.shape.dim]}

    return {
        "inputs": [describe(value) for value in model.graph.input],
        "outputs": [describe(value) for value in model.graph.output],
    }


def _verdict(verdict: Verdict | None) -> dict[str, Any]:
    if verdict is None:
        return {"status": "none", "reason": "none: the test split has not seen this model", "checks": []}
    checks = [
        {key: round(value, 6) if isinstance(value, float) else value for key, value in check.items()}
        for check in (check.model_dump(mode="json") for check in verdict.checks)
    ]
    return {"status": verdict.status.value, "reason": verdict.reason, "checks": checks}


def _golden(directory: Path, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Evenly spaced texts from short to long, each answered alone and on one thread."""
    by_length = sorted(set(texts), key=lambda text: (len(text), text))
    step = max(1, len(by_length) // GOLDEN_ROWS)
    model = predictor.Predictor(directory, threads=1)
    rows = []
    for text in by_length[::step][:GOLDEN_ROWS]:
        (answer,) = model.predict([text])
        probabilities = {label: round(value, 5) for label, value in answer["probabilities"].items()}
        rows.append({"text": text, "label": answer["label"], "probabilities": probabilities})
    return rows

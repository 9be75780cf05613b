"""Builds the serving bundle: a folder that answers with onnxruntime and tokenizers alone.

::

    model.onnx         the graph (and model.onnx.data where the weights are large)
    tokenizer.json     with truncation and padding set as the model was trained
    manifest.json      inputs, outputs, what they mean, versions, the verdict, and the digest of every other file
    golden.json        texts with the tokens and answers that they must give
    predictor.py       answers, and tests itself
    README.md          the model card

The same model, verdict and versions give the same bytes: no times, run ids or paths.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnxruntime
import tokenizers

from tasks.contracts.base import FeatherweightError
from tasks.contracts.values import Verdict
from tasks.ml import digests
from tasks.serving import card, predictor

if TYPE_CHECKING:
    from tasks.ml.data.datasets import Golden
    from tasks.ml.problem import Answer

FORMAT = 1
GOLDEN_ROWS = 16
DIGITS = 5
"""Of a golden answer, after the point of its unit."""
MODEL_FILES = ("model.onnx", "model.onnx.data")
SCALED_AT_RUN_TIME = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul"})
"""Operators that take one scale from a whole batch, so that a row's answer depends on the rows beside it."""


def build(
    directory: Path,
    *,
    source: Path,
    name: str,
    problem: str,
    answer: Answer,
    base_model: str,
    data: str,
    tokenizer: tokenizers.Tokenizer,
    golden: Sequence[Golden],
    validation: dict[str, Any],
    verdict: Verdict | None,
) -> None:
    """Fills an empty directory.

    Args:
        source: the ONNX bundle that ``export`` published.
        name: of the registered model.
        answer: what its outputs mean.
        base_model: what the teacher was fine-tuned from, for the card.
        data: what it was fine-tuned on, for the card.
        tokenizer: cuts and pads as the model learned texts.
        golden: texts, none of them from the test split, with their tokens as the model learned them.
        validation: ``validation.json`` of the stage ``validate``, or as much of the same of another split.
        verdict: ``None`` for a model that was not judged yet.

    Raises:
        FeatherweightError: the model would be served other tokens of a golden text than it learned.
    """
    for file in MODEL_FILES:
        if (source / file).is_file():
            shutil.copyfile(source / file, directory / file)
    shutil.copyfile(predictor.__file__, directory / "predictor.py")
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    padding: Any = tokenizer.padding
    truncation: Any = tokenizer.truncation
    model = onnx.load(str(directory / "model.onnx"), load_external_data=False)
    manifest = {
        "format": FORMAT,
        "name": name,
        "problem": problem,
        "labels": list(answer.labels),
        "answer": {"kind": answer.kind, **answer.about},
        "max_length": truncation["max_length"],
        "padding": {"id": padding["pad_id"], "token": padding["pad_token"], "side": padding["direction"]},
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
    _write(directory / "golden.json", _golden(directory, golden))
    readme = card.render(manifest, purpose=answer.purpose, base_model=base_model, data=data, validation=validation)
    (directory / "README.md").write_text(readme, encoding="utf-8")
    files = {path.name: digests.of_file(path) for path in sorted(directory.iterdir()) if path.name != "manifest.json"}
    _write(directory / "manifest.json", manifest | {"files": files})


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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


def _golden(directory: Path, golden: Sequence[Golden]) -> list[dict[str, Any]]:
    """Each text with the tokens and the answer that it must give, answered alone and on one thread."""
    model = predictor.Predictor(directory, threads=1)
    digits = DIGITS - math.floor(math.log10(model.answers.unit))
    rows = []
    for one in golden:
        (ids,) = model.encode([one.text])
        _require_learned(model.tokenizer, one, ids)
        (answer,) = model.predict([one.text])
        rows.append({"text": one.text, "input_ids": ids, **_rounded(answer, digits)})
    return rows


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one, digits) for name, one in value.items()}
    return round(value, digits) if isinstance(value, float) else value


def _require_learned(tokenizer: tokenizers.Tokenizer, golden: Golden, ids: Sequence[int]) -> None:
    """Looks whether a text is served as it was learned; one that held tokens which were cut away cannot be."""
    served = [str(tokenizer.id_to_token(index)) for index in ids]
    known = all(tokenizer.token_to_id(token) is not None for token in golden.tokens)
    if known and served != golden.tokens:
        raise FeatherweightError(
            f"register: the tokenizer that would be served reads {golden.text[:60]!r} as {_ends(served)}, but the "
            f"model learned it as {_ends(golden.tokens)}; the base model's tokenizer.json and tokenizer_config.json "
            "disagree"
        )


def _ends(tokens: Sequence[str]) -> str:
    """Number of tokens, the first and the last few of them."""
    shown = list(tokens) if len(tokens) <= 8 else [*tokens[:4], "…", *tokens[-4:]]
    return f"{len(tokens)} tokens ({' '.join(shown)})"

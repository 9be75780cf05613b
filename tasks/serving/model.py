"""The MLflow model around a serving bundle: what it takes and gives, what it needs, and the code that answers."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tasks.serving import completions, predictor

CODE = Path(__file__).parent / "pyfunc.py"
"""What MLflow loads and executes."""
PREDICTOR = Path(predictor.__file__)
"""What that executes in turn, with ``COMPLETIONS`` beside it where a model generates."""
COMPLETIONS = Path(completions.__file__)
BUNDLE = "bundle"
"""The artifact of the model that is the serving bundle."""
RUNTIMES = ("onnxruntime-gpu", "onnxruntime")


def installed(bundle: Path, names: Iterable[str], folder: Path) -> Path:
    """Writes an MLflow model that answers from a bundle's files by the code of this installation, and by no other.

    Args:
        names: the bundle's files.
        folder: an empty directory, in which the model is written.
    """
    import mlflow.pyfunc

    copy = folder / bundle.name
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / name, copy / name)
    for code in (PREDICTOR, COMPLETIONS):
        shutil.copyfile(code, copy / code.name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*An input example was not provided")
        mlflow.pyfunc.save_model(
            path=str(folder / "model"),
            python_model=str(CODE),
            artifacts={BUNDLE: str(copy)},
            pip_requirements=requirements(),
            **interface(bundle),
        )
    return folder / "model"


def interface(bundle: Path) -> dict[str, Any]:
    """What MLflow is told of a bundle, as arguments of ``save_model``: its signature, and whether it streams.

    Column ``text``, or ``messages`` of a model that learned conversations → the fields of the bundle's answers, such as
    ``label``, ``score`` and ``probabilities``, or ``completion`` and ``tokens``; what may be asked beside texts, such
    as ``new_tokens``, are parameters.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Map, Object, Property

    types: dict[type, Any] = {
        str: DataType.string, int: DataType.long, float: DataType.double, dict: Map(DataType.double),
    }  # fmt: skip
    message = Object([Property(name, DataType.string) for name in ("role", "content")])
    reads: dict[str, Any] = {"text": DataType.string, "messages": Array(message)}
    answers = predictor.answers(json.loads((bundle / "manifest.json").read_text(encoding="utf-8")))
    options = [ParamSpec(name, DataType.integer, default) for name, default in answers.options.items()]
    params: Any = ParamSchema(options) if options else None
    signature = ModelSignature(
        inputs=Schema([ColSpec(reads[answers.INPUT], answers.INPUT)]),
        outputs=Schema([ColSpec(types[kind], name) for name, kind in answers.COLUMNS.items()]),
        params=params,
    )
    return {"signature": signature, "streamable": answers.GENERATES}


def requirements() -> list[str]:
    """Exact versions of what serving needs; of the two onnxruntime packages, the one that is installed."""
    found = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    runtime = next(name for name in RUNTIMES if name in found)
    return [f"{name}=={importlib.metadata.version(name)}" for name in (runtime, "tokenizers", "numpy", "mlflow")]

"""The MLflow model around a serving bundle: what it takes and gives, what it needs, and the code that answers."""

from __future__ import annotations

import importlib.metadata
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CODE = Path(__file__).parent / "pyfunc.py"
"""What MLflow loads and executes."""
PREDICTOR = Path(__file__).parent / "predictor.py"
"""What that executes in turn."""
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
    shutil.copyfile(PREDICTOR, copy / PREDICTOR.name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*An input example was not provided")
        mlflow.pyfunc.save_model(
            path=str(folder / "model"),
            python_model=str(CODE),
            artifacts={BUNDLE: str(copy)},
            signature=signature(),
            pip_requirements=requirements(),
        )
    return folder / "model"


def signature() -> Any:
    """Column ``text`` → ``label``, ``score`` and ``probabilities`` (label → probability)."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Map

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "text")]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.double, "score"),
                ColSpec(Map(DataType.double), "probabilities"),
            ]
        ),
    )


def requirements() -> list[str]:
    """Exact versions of what serving needs; of the two onnxruntime packages, the one that is installed."""
    found = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    runtime = next(name for name in RUNTIMES if name in found)
    return [f"{name}=={importlib.metadata.version(name)}" for name in (runtime, "tokenizers", "numpy", "mlflow")]

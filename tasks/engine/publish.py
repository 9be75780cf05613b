"""How a stage hands on what it made: PyTorch bundles and evidence files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.contracts.values import Bundle, Digest
from tasks.engine import store, tracking

if TYPE_CHECKING:
    from torch import nn

    from tasks.ml.models.quantization_spec import Spec


def torch_bundle(model: nn.Module, tokenizer: Any, problem: str, *, spec: Spec | None = None) -> tuple[Bundle, float]:
    """Publishes a model; returns its bundle and the size of its weights in MB (10^6 bytes)."""
    from tasks.ml.models import modeling

    with store.workspace() as directory:
        modeling.save(model, tokenizer, directory, spec=spec)
        size_mb = (directory / modeling.WEIGHTS).stat().st_size / 1e6
        digest = store.publish(directory)
    return Bundle(digest=digest, format="torch", problem=problem), size_mb


def evidence(files: dict[str, str]) -> Digest:
    """Publishes text files as evidence and logs them to the stage's MLflow run."""
    with store.workspace() as directory:
        for name, content in files.items():
            (directory / name).write_text(content, encoding="utf-8")
            tracking.current().text(content, name)
        return store.publish(directory)

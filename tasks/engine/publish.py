"""How a stage hands on what it made: PyTorch bundles and evidence files."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tasks.contracts.values import Bundle, Digest
from tasks.engine import store, tracking

if TYPE_CHECKING:
    from torch import nn

    from tasks.ml.models.quantization_spec import Spec
    from tasks.ml.quantization.blocks import Blocks


def torch_bundle(
    model: nn.Module,
    tokenizer: Any,
    problem: str,
    *,
    spec: Spec | None = None,
    codes: Mapping[str, Blocks] = MappingProxyType({}),
) -> tuple[Bundle, float]:
    """Publishes a model; returns its bundle and the size of its weights in MB (10^6 bytes).

    Args:
        spec, codes: how it is quantized, if it is: by rules, and where no rule finds the codes again.
    """
    from tasks.ml.models import modeling
    from tasks.ml.quantization import block_files

    with store.workspace() as directory:
        modeling.save(model, tokenizer, directory, spec=spec)
        if codes:
            block_files.save(directory, codes)
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

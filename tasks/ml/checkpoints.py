"""What a run needs to go on after it was killed: safetensors and JSON, in pairs, the newest valid one counts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

KEPT = 2
"""The newest may turn out broken: the one before it stays."""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Clones what shares memory with another (tied weights), which safetensors refuses, and nothing else."""
    seen: set[int] = set()
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        kept[name] = plain.clone() if address in seen else plain
        seen.add(address)
    return kept


class Checkpoints:
    """The checkpoints of one run in a directory, or nowhere if it is ``None``."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Writes the tensors, then the JSON that makes them count; both reach the disk before older ones go."""
        if self.directory is None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"step-{step:09d}.safetensors"
        save_file(_unshared(tensors), path)
        _sync(path)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({**state, "step": step, "sha256": _digest(path)}), encoding="utf-8")
        _sync(temporary)
        temporary.replace(path.with_suffix(".json"))
        _sync(self.directory)
        for old in sorted(self.directory.glob("step-*.json"))[:-KEPT]:
            old.unlink()
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def newest(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """Returns the state, with its ``step``, and the tensors of the newest checkpoint that is whole, if any."""
        if self.directory is None:
            return None
        for path in sorted(self.directory.glob("step-*.json"), reverse=True):
            tensors = path.with_suffix(".safetensors")
            try:
                state = json.loads(path.read_text(encoding="utf-8"))
                if _digest(tensors) == state["sha256"]:
                    return state, load_file(tensors)
            except (OSError, ValueError, KeyError):
                continue
        return None


def part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Those whose name starts with the prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

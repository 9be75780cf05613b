"""Blocks on disk: ``codes.safetensors`` beside a model's weights, with what each block format is in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tasks.ml.quantization.blocks import Blocks, Format

FILE = "codes.safetensors"
PARTS = ("codes", "scales", "zeros")


def save(directory: Path, weights: Mapping[str, Blocks]) -> None:
    """Writes blocks by name into an existing directory."""
    tensors = {
        f"{name}.{part}": getattr(blocks, part).contiguous() for name, blocks in weights.items() for part in PARTS
    }
    about = {name: (blocks.inputs, asdict(blocks.format)) for name, blocks in weights.items()}
    save_file(tensors, directory / FILE, metadata={"blocks": json.dumps(about, sort_keys=True)})


def load(directory: Path) -> dict[str, Blocks]:
    """Reads what ``save`` wrote; nothing where there is no such file."""
    if not (directory / FILE).is_file():
        return {}
    with safe_open(directory / FILE, framework="pt") as file:
        about = json.loads(file.metadata()["blocks"])

        def part(name: str, which: str) -> torch.Tensor:
            found: torch.Tensor = file.get_tensor(f"{name}.{which}")
            return found

        return {
            name: Blocks(Format(**form), inputs, *(part(name, which) for which in PARTS))
            for name, (inputs, form) in about.items()
        }

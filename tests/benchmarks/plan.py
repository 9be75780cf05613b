"""What decoders that do not fit small machines would take: memory, devices and hours, by the cost model of ``xray``.

    infra/run python tests/benchmarks/plan.py [--tokens 100e6] [--share 0.4]

Nothing here is measured. Memory is what ``tests/ml/xray/test_cost_model.py`` holds against PyTorch; which share of a
device's peak training reaches is an assumption, and said.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tasks.ml.xray import cost_model, writing
from tasks.ml.xray.architecture import Architecture

ROWS, LENGTH = 4, 2048
"""Of a device's batch."""
ROOM = 0.9
"""Share of a device's memory that is planned with."""
NODE = 8
"""Devices of a node."""


@dataclass(frozen=True)
class Device:
    """By its maker's data sheet."""

    name: str
    memory: float
    """Bytes."""
    flops_per_s: float
    """Dense products in bf16."""
    bytes_per_s: float


DEVICES = (Device("H100 80 GB", 80e9, 989e12, 3.35e12), Device("H200", 141e9, 989e12, 4.8e12))
SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size",
)  # fmt: skip
SHAPES = {
    "SmolLM2-135M": (576, 30, 9, 3, 1536, 49152),
    "SmolLM2-1.7B": (2048, 24, 32, 32, 8192, 49152),
    "Mistral-7B": (4096, 32, 32, 8, 14336, 32000),
    "Llama-3-70B": (8192, 80, 64, 8, 28672, 128256),
}
"""As their ``config.json`` has them."""


def architecture(name: str) -> Architecture:
    sizes: dict[str, Any] = dict(zip(SIZES, SHAPES[name], strict=True))
    tied = name.startswith("SmolLM2")
    return Architecture.from_config(
        {"model_type": "llama", "max_position_embeddings": 8192, "tie_word_embeddings": tied, **sizes}
    )


def training(known: Architecture, device: Device, tokens: float, share: float) -> dict[str, str]:
    """Full fine-tuning with AdamW in fp32, autocast to bf16, checkpointing, states sharded evenly (FSDP2)."""
    held = cost_model.memory_bytes(known, batch=ROWS, length=LENGTH, bytes_per_element=2, checkpointing=True)
    own = held.pop("activations")
    states = sum(held.values())
    room = ROOM * device.memory - own
    count = max(1, math.ceil(states / room))
    count = count if count <= NODE else NODE * math.ceil(count / NODE)
    flops = tokens / (ROWS * LENGTH) * cost_model.forward_flops(known, batch=ROWS, length=LENGTH)
    # What checkpointing computes again is a forward pass more.
    hours = (cost_model.TRAINING_FACTOR + 1) * flops / (count * share * device.flops_per_s) / 3600
    return {
        "states, GB": f"{states / 1e9:,.1f}",
        "activations a device, GB": f"{own / 1e9:,.1f}",
        "devices": f"{count} ({math.ceil(count / NODE)} node{'s' if count > NODE else ''})",
        "hours": f"{hours:,.1f}",
    }


def served(known: Architecture, device: Device) -> dict[str, str]:
    """One text at a time after 1,024 tokens, weights and head in blocks of 64."""
    stored = writing.Format("", writing.in_blocks(4, 64), writing.in_blocks(4, 64), cache_bytes=2)
    moved = writing.bytes_a_token(known, stored, past=1024)
    weights = writing.bytes_a_token(known, stored, past=0)
    return {"4 bits, GB": f"{weights / 1e9:,.2f}", "tokens/s at most": f"{device.bytes_per_s / moved:,.0f}"}


def rows(tokens: float, share: float) -> Iterator[dict[str, str]]:
    for name in SHAPES:
        known = architecture(name)
        for device in DEVICES:
            start = {"model": name, "parameters": f"{cost_model.num_parameters(known) / 1e9:,.2f} B", "on": device.name}
            yield start | training(known, device, tokens, share) | served(known, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=float, default=100e6, help="that are trained on")
    parser.add_argument("--share", type=float, default=0.4, help="of the peak that training is assumed to reach")
    options = parser.parse_args()
    found = list(rows(options.tokens, options.share))
    print(f"| {' | '.join(found[0])} |\n|{'---|' * len(found[0])}")
    for row in found:
        print(f"| {' | '.join(row.values())} |")


if __name__ == "__main__":
    main()

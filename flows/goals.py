"""What a goal sets: techniques of compression and the budget together, as far as the base model can have them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tasks.ml.models import inspection
from tasks.ml.models.inspection import Inspection
from tasks.quantize import QuantizationConfig


class Goal(StrEnum):
    BALANCED = "balanced"
    SMALLEST = "smallest"
    FASTEST = "fastest"
    FAITHFUL = "faithful"


@dataclass(frozen=True)
class Aim:
    """A goal, for a base model of any size."""

    layers: float
    """Fraction that the student keeps."""
    rank: int
    """Columns of its token table, where the hidden state is wider; 0: as wide as that."""
    width: dict[str, Any]
    vocabulary: float
    """Fraction of tokens kept, where a tokenizer can be cut."""
    embeddings: str
    steps: tuple[int, int]
    """Of distillation and of recovery."""
    max_quality_drop: float
    min_shrink: float
    min_speedup: float


AIMS = {
    Goal.BALANCED: Aim(
        layers=2 / 3, rank=128, width={"target_speedup": 1.6}, vocabulary=0.45, embeddings="int4", steps=(1200, 1600),
        max_quality_drop=0.015, min_shrink=6, min_speedup=6,
    ),
    Goal.SMALLEST: Aim(
        layers=1 / 2, rank=128, width={"target_speedup": 2.0}, vocabulary=0.3, embeddings="int4", steps=(2000, 2400),
        max_quality_drop=0.03, min_shrink=15, min_speedup=6,
    ),
    Goal.FASTEST: Aim(
        layers=1 / 3, rank=128, width={"target_speedup": 1.6}, vocabulary=0.45, embeddings="int8", steps=(2000, 2400),
        max_quality_drop=0.03, min_shrink=8, min_speedup=12,
    ),
    Goal.FAITHFUL: Aim(
        layers=1, rank=0, width={"keep_ffn": 0.75, "keep_heads": 1.0}, vocabulary=1, embeddings="int8", steps=(0, 2000),
        max_quality_drop=0.005, min_shrink=4, min_speedup=2,
    ),
}  # fmt: skip


def fields(goal: Goal, base: Inspection) -> dict[str, Any]:
    """The part of a recipe that a goal sets for a base model."""
    aim, config = AIMS[goal], base.config
    distilled, recovered = aim.steps
    rank = aim.rank if aim.rank < config["hidden_size"] else 0
    whole_blocks = (rank or config["hidden_size"]) % QuantizationConfig().block_size == 0
    return {
        "distillation": {
            "layers": max(1, round(aim.layers * config["num_hidden_layers"])),
            "embedding_rank": rank,
            "steps": distilled,
            "learning_rate": 3e-4,
        },
        "pruning": {
            "width": aim.width,
            "keep_vocabulary": aim.vocabulary if inspection.is_wordpiece(base.directory) else 1.0,
            "embeddings": "frozen",
            "heal_rounding": True,
            "steps": recovered,
            "learning_rate": 3e-4,
        },
        "quantization": {"scheme": "int8-dynamic", "embeddings": aim.embeddings if whole_blocks else "int8"},
        "budget": {
            "max_quality_drop": aim.max_quality_drop,
            "min_shrink": aim.min_shrink,
            "min_speedup": aim.min_speedup,
        },
    }

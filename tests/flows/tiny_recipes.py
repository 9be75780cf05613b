"""A recipe of a tiny base model, and rows whose label one word tells: whole flows in seconds."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from flows.recipe import Recipe
from tasks.engine import tracking
from tasks.engine.tracking import MLFLOW_PARENT_RUN_ID
from tasks.ml.models import modeling
from tests.tasks import tiny_models


def sources(folder: Path) -> tuple[Path, Path]:
    """Writes base model and rows into a folder and returns where they are."""
    base = folder / "base"
    base.mkdir()
    modeling.save(tiny_models.model(), tiny_models.tokenizer(), base)
    source = folder / "rows.csv"
    lines = [
        f"{one} {other} {telling},{label}"
        for one, other in product(tiny_models.WORDS, repeat=2)
        for telling, label in (("great", "positive"), ("dull", "negative"))
    ]
    source.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    return base, source


def write(folder: Path) -> Recipe:
    """Writes base model and rows into a folder and returns the recipe."""
    base, source = sources(folder)
    student = {"learning_rate": 2e-3, "batch_size": 16, "steps": 57}
    return Recipe.model_validate({
        "name": "tiny", "base_model": str(base),
        "data": {"source": f"file:{source}", "max_length": 16, "max_rows": 300, "selection_fraction": 0.2},
        "training": {"learning_rate": 2e-3, "batch_size": 16, "epochs": 2},
        "distillation": {**student, "layers": 1}, "pruning": {**student, "width": {"keep_heads": 0.5}},
        "validation": {"device": "cpu", "threads": 1, "repeats": 3, "sentences": 10, "max_flips": 0.1},
        "budget": {"max_quality_drop": 0.5, "min_shrink": 1.2, "min_speedup": 0.1}, "seed": 3,
    })  # fmt: skip


def children(run_id: str, kind: str) -> list[Any]:
    """The runs of a kind below a run."""
    query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}' and tags.`featherweight.kind` = '{kind}'"
    return tracking.find_runs(query, names=["tiny"], max_results=1000)

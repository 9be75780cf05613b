"""validate: the proof on the real runtime and device."""

from __future__ import annotations

import json
from enum import StrEnum

from pydantic import Field

from tasks.contracts.base import StageConfig
from tasks.contracts.values import Bundle, Scorecard, Splits, StageOutput
from tasks.engine import progress, store, tracking
from tasks.engine.stage import stage
from tasks.ml import machine


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class ValidationConfig(StageConfig):
    """Where and how thoroughly the exported model is tried."""

    device: Device = Field(Device.AUTO, title="Device")
    """auto takes CUDA if every heavy node really runs on it, else the CPU; cuda fails unless every heavy node did."""
    threads: int = Field(0, ge=0, le=1024, title="Threads")
    """CPU threads for runtime and baseline alike; 0 takes all cores."""
    repeats: int = Field(5, ge=3, le=100, title="Repeats")
    """Interleaved timing rounds per model."""
    sentences: int = Field(100, ge=10, le=10000, title="Sentences")
    """Real sentences timed per round at batch 1."""
    max_flips: float = Field(0.01, ge=0, le=1, title="Changed answers allowed")
    """Fraction of selection rows whose answer may differ from the simulated model."""


TITLES = {"train": "Teacher", "distill": "Student", "prune": "Pruned", "quantize": "Quantized (simulated)"}


@stage(salt=lambda **_: machine.identity())  # a timing belongs to the machine that it was taken on
def validate(source: Bundle, splits: Splits, config: ValidationConfig, *, lineage: dict[str, Bundle]) -> StageOutput:
    """Holds the shipped model against its simulation on selection, then measures every model of the line on test."""
    from tasks.ml.proof import proof
    from tasks.ml.quality import regressions

    data = store.path(splits.digest)
    models = [
        proof.subject(name, TITLES[name], store.path(bundle.digest), data, simulated=name == "quantize")
        for name, bundle in lineage.items()
    ]
    shipped = proof.subject("validate", "Shipped", store.path(source.digest), data)
    validation, logits = proof.examine(
        models,
        shipped,
        data=data,
        problem_name=source.problem,
        progress=progress.Live("validate").update,
        **config.model_dump(mode="json"),
    )
    with store.workspace() as directory:
        (directory / "validation.json").write_text(json.dumps(validation, indent=1), encoding="utf-8")
        lost = regressions.worst(data, source.problem, logits)
        (directory / "regressions.json").write_text(json.dumps(lost, indent=1, ensure_ascii=False), "utf-8")
        proof.write_rows(directory / "rows.arrow", data, source.problem, logits)
        tracking.current().artifact(directory)
        evidence = store.publish(directory)
    measured = validation["models"][-1] | validation["parity"] | {"num_examples": validation["n"]}
    names = Scorecard.model_fields.keys() & measured.keys()
    return StageOutput(
        bundle=source, evidence=evidence, scorecard=Scorecard(split="test", **{name: measured[name] for name in names})
    )

"""appraise: what a model of the line is worth, measured on the selection split; it never opens test."""

from __future__ import annotations

import json

from pydantic import Field

from tasks.contracts.values import Bundle, Scorecard, Splits, StageOutput
from tasks.engine import quiet, store, tracking
from tasks.engine.stage import stage
from tasks.ml import machine


class AppraisalConfig(quiet.TimingConfig):
    """Where and how long a model is tried: fewer repeats than a proof, because it only has to rank."""

    repeats: int = Field(3, ge=3, le=100, title="Repeats")
    """Timing rounds."""
    max_flips: float = Field(0.01, ge=0, le=1, title="Label flips allowed")
    """Fraction of selection rows whose label may differ from the simulated model."""


@stage(salt=lambda **_: machine.identity())  # a timing belongs to the machine that it was taken on
def appraise(
    source: Bundle, splits: Splits, config: AppraisalConfig, *, teacher: Bundle, simulated: Bundle | None = None
) -> StageOutput:
    """Measures quality beside the teacher's, and, with the machine to itself, the time of one sentence and of batches.

    Args:
        source: an exported candidate, or a model in PyTorch, which is timed eagerly.
        simulated: what the candidate was exported from: it must say the same.
    """
    from tasks.ml.proof import appraisal

    data = store.path(splits.digest)
    candidate = appraisal.measure(
        store.path(source.digest),
        teacher=store.path(teacher.digest),
        simulated=store.path(simulated.digest) if simulated else None,
        data=data,
        problem_name=source.problem,
        alone=quiet.timing,
        batch_size=quiet.BATCH,
        **config.model_dump(mode="json"),
    )
    with store.workspace() as directory:
        (directory / "appraisal.json").write_text(json.dumps(candidate.measured, indent=1), encoding="utf-8")
        candidate.write_rows(directory / "selection.arrow")
        tracking.current().artifact(directory)
        evidence = store.publish(directory)
    names = Scorecard.model_fields.keys() & candidate.measured.keys()
    card = Scorecard(split="selection", **{name: candidate.measured[name] for name in names})
    return StageOutput(bundle=source, evidence=evidence, scorecard=card)

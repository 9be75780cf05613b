"""The values that travel between stages: small, frozen, and free of tensors, live models and paths."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, StringConstraints

from tasks.contracts.base import Contract

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""64 hexadecimal digits: the SHA-256 of what a directory in the store holds. It names a directory, so it is no path."""

RunId = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]{1,256}$")]
"""The id of an MLflow run. It names files, so it is no path."""


class Bundle(Contract):
    """The identity of a model directory in the store."""

    digest: Digest
    format: Literal["torch", "onnx"]
    problem: str


class Splits(Contract):
    """The identity of a prepared dataset: train, calibration, selection, test and unlabeled rows."""

    digest: Digest
    problem: str


class Scorecard(Contract):
    """What was measured, with units in the names. A field that was not measured is ``None``.

    Quality is over the split that ``split`` names; latency is one real sentence (batch 1), to which a decoder
    adds 16 tokens.
    """

    split: Literal["", "selection", "test"] = ""
    num_examples: int | None = None
    """Rows that quality was measured on (n)."""
    metric: str = "accuracy"
    """What quality is called; more of it is better."""
    quality: float | None = Field(None, validation_alias=AliasChoices("quality", "accuracy"))
    loss: float | None = None
    """Mean supervised loss of a row."""
    train_quality: float | None = Field(None, validation_alias=AliasChoices("train_quality", "train_accuracy"))
    overfit_gap: float | None = None
    """Quality on train minus quality on the selection split."""
    agreement_with_teacher: float | None = None
    """Fraction of rows that teacher and model answer the same."""
    agreement_rows: int | None = None
    """Rows that this was told of: of a decoder those that it and its teacher read as the same tokens."""
    drop_error: float | None = None
    """Standard error of the quality lost against the teacher, from row to row."""
    agreement_with_unquantized: float | None = None
    """Fraction of rows that the model answers the same before and after (simulated) quantization."""
    label_flips: int | None = None
    """Rows of the selection split whose answer differs between the runtime and the simulated model; of a decoder, next
    tokens."""
    max_abs_error: float | None = None
    """Largest absolute logit difference between the runtime and the simulated model; of a decoder, of what a token
    loses in nats."""
    mean_abs_error: float | None = None
    num_parameters: int | None = None
    sparsity: float | None = None
    """Fraction of the weights of the backbone's linear layers that are zero, where zeros are held."""
    size_mb: float | None = None
    """Bytes of the weights on disk (``model.safetensors`` or ``model.onnx`` and its data) / 10^6."""
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    latency_p99_ms: float | None = None
    throughput_per_s: float | None = None
    """Rows per second at the best measured batch size."""
    load_time_s: float | None = None
    peak_memory_mb: float | None = None
    """Highest resident set of a clean process that loads the model and answers / 10^6."""
    samples_per_s: float | None = None
    """Training throughput."""
    train_time_s: float | None = None
    """Seconds of optimizer steps, without evaluations."""
    num_rows: int | None = None
    fused_attention_nodes: int | None = None
    quantized_matmul_nodes: int | None = None

    def metrics(self) -> dict[str, float]:
        """Returns the measured numbers by name, quality by that of its metric, without whatever was not measured."""
        names = {"quality": self.metric, "train_quality": f"train_{self.metric}"}
        measured = self.model_dump(exclude={"split", "metric"}, exclude_none=True)
        return {names.get(name, name): float(value) for name, value in measured.items()}


class StageOutput(Contract):
    """What the body of a stage returns; ``@stage`` adds the run and makes a ``StageResult`` of it.

    Attributes:
        bundle: the new model, or ``None`` for a stage that makes none.
        splits: the prepared dataset (``prepare`` only).
        scorecard: what the stage measured.
        evidence: digest of a store directory of JSON and Arrow files: histories, rows, tables.
    """

    bundle: Bundle | None = None
    splits: Splits | None = None
    scorecard: Scorecard = Scorecard()
    evidence: Digest | Literal[""] = ""


class StageResult(StageOutput):
    """What every stage returns. Downstream receives ``.bundle`` only, so a new run never spoils a cache key."""

    stage: str
    run_id: RunId
    """MLflow child run of this execution."""
    cached: bool = False
    seconds: float = 0.0
    """Wall time of the execution that computed the result (not of a reuse)."""


class CheckStatus(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    UNDECIDABLE = "undecidable"


class Parting(Contract):
    """The rows on which two models part, and what they say: the tests behind a check of quality."""

    lost: int
    """Rows that only the teacher got right."""
    gained: int
    """Rows that only the shipped model got right."""
    mcnemar_p: float
    """Two-sided p-value of the exact McNemar test that neither is better."""
    margin: float
    """Drop of accuracy that is acceptable (the check's limit)."""
    noninferiority_p: float
    """One-sided p-value of the score test that the drop is the margin or more."""
    confidence: float
    largest_drop: float
    """With that (one-sided) confidence the drop is not larger than this."""
    rows_needed: int | None = None
    """Rows that would decide an undecidable check; ``None`` where it is decided, or where rows would not help."""


class Check(Contract):
    """One budget check: what was measured, how surely, and against which limit."""

    name: str
    """For example ``quality_drop``, ``shrink``, ``speedup``."""
    measured: float
    low: float
    """Lower end of the confidence interval (equal to ``measured`` where the measurement is exact)."""
    high: float
    limit: float
    direction: Literal["at_most", "at_least"]
    n: int
    """Rows (quality), repeats (latency) or files (size) that the measurement rests on."""
    status: CheckStatus
    explanation: str
    """One sentence a person can read."""
    parting: Parting | None = None
    """For a check of quality."""
    metric: str = "accuracy"
    """Of a check of quality: what it is called."""


class ClassRecall(Contract):
    """How many test rows of one class teacher and shipped model find."""

    label: str
    n: int
    """Rows of the class."""
    teacher: int
    shipped: int
    change_low: float
    """Lower end of the paired interval of the change."""
    change_high: float

    @property
    def change(self) -> float:
        """Recall of the shipped model less that of the teacher."""
        return (self.shipped - self.teacher) / self.n


class Verdict(Contract):
    """All checks of a run. Passed only if every check passed."""

    checks: tuple[Check, ...] = Field(min_length=1)
    recalls: tuple[ClassRecall, ...] = ()
    """Of every class that has test rows, where teacher and shipped model answer with classes."""

    @property
    def status(self) -> CheckStatus:
        statuses = {check.status for check in self.checks}
        for worst in (CheckStatus.FAILED, CheckStatus.UNDECIDABLE):
            if worst in statuses:
                return worst
        return CheckStatus.PASSED

    @property
    def passed(self) -> bool:
        return self.status is CheckStatus.PASSED

    @property
    def reason(self) -> str:
        """One sentence: the first check that did not pass, or that all did."""
        for check in self.checks:
            if check.status is self.status and check.status is not CheckStatus.PASSED:
                return f"{check.status}: {check.explanation}"
        return f"passed: {len(self.checks)} of {len(self.checks)} checks"


class Release(Contract):
    """A registered model version and the serving bundle behind it."""

    name: str = Field(pattern=r"^[^/\\:]*[^./\\:][^/\\:]*$")
    """Also the name of a directory."""
    version: int
    digest: Digest
    """Digest of the serving bundle."""
    model_uri: str


class Outcome(Contract):
    """What a whole run came to: the document behind ``--json``, ``show`` and the report."""

    recipe: str
    run_id: RunId
    """MLflow parent run."""
    flow_run_id: str = ""
    verdict: Verdict
    stages: tuple[StageResult, ...]
    release: Release | None = None
    """``None`` when the verdict was not passed."""

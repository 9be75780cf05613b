"""The values that travel between stages: small, frozen, and free of tensors, live models and paths."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""64 hexadecimal digits: the SHA-256 of what a directory in the store holds. It names a directory, so it is no path."""

RunId = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]{1,256}$")]
"""The id of an MLflow run. It names files, so it is no path."""


class FeatherweightError(ValueError):
    """The user can mend this: the message says what was wrong, where, and what would be right.

    Args:
        lines: one for each thing that is wrong. What they quote of names and data makes no further ones.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*(" ".join(line.splitlines()) for line in lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


class Contract(BaseModel):
    """Base of everything that travels: frozen, and closed to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StageConfig(Contract):
    """Base of a stage's configuration. Every field has a type, a bound, a title and a sentence with units."""


class Precision(StrEnum):
    AUTO = "auto"
    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"


class Optimizer(StrEnum):
    ADAMW = "adamw"
    ADAMW_8BIT = "adamw-8bit"
    ADAFACTOR = "adafactor"
    LION = "lion"
    MUON = "muon"
    SCHEDULE_FREE_ADAMW = "schedule-free-adamw"
    SGD = "sgd"


class Embeddings(StrEnum):
    SPARSE = "sparse"
    DENSE = "dense"
    FROZEN = "frozen"


class Parallelism(StrEnum):
    REPLICATED = "replicated"
    SHARDED = "sharded"
    TENSOR = "tensor"


NOT_IN_PARTS = (Optimizer.ADAMW_8BIT, Optimizer.ADAFACTOR, Optimizer.SGD)
"""Optimizers that do not train parameters of which each process holds a part."""


def unsuited(
    parallelism: str, *, optimizer: str, precision: str, lora_rank: int, offload_optimizer: bool = False
) -> str:
    """Why several processes cannot train like that, and what would be right; empty if they can."""
    if parallelism == Parallelism.REPLICATED:
        return ""
    if precision == Precision.FP8:
        return f"precision: fp8 is not for parallelism {parallelism}; choose bf16, or parallelism replicated"
    if offload_optimizer:
        return f"offload_optimizer: not for parallelism {parallelism}, which holds parts of the state"
    if lora_rank and parallelism == Parallelism.TENSOR:
        return "lora_rank: adapters are not cut by parallelism tensor; choose sharded, or rank 0"
    if optimizer in NOT_IN_PARTS:
        able = ", ".join(name for name in Optimizer if name not in NOT_IN_PARTS)
        return f"optimizer: {optimizer} does not train parts of parameters; choose {able}, or parallelism replicated"
    return ""


class Schedule(StrEnum):
    LINEAR = "linear"
    COSINE = "cosine"


class Batching(StrEnum):
    SHUFFLED = "shuffled"
    BUCKETED = "bucketed"


class Compile(StrEnum):
    OFF = "off"
    AUTO = "auto"


class OptimizerConfig(StageConfig):
    """An optimizer, its schedule and what it may use, the same in every stage that trains."""

    epochs: float = Field(3, gt=0, le=1000, title="Epochs", description="Passes over the training rows.")
    optimizer: Optimizer = Field(
        Optimizer.ADAMW,
        title="Optimizer",
        description="Each has its own scale of learning rates. lion, schedule-free-adamw and adamw-8bit need the extra "
        "'training'.",
    )
    learning_rate: float = Field(1e-4, gt=0, le=100, title="Learning rate", description="Peak learning rate.")
    batch_size: int = Field(32, ge=1, le=65536, title="Batch size", description="Rows per optimizer step.")
    batch_tokens: int = Field(
        0,
        ge=0,
        le=2**24,
        title="Tokens per batch",
        description="A batch holds as many rows as fit into this many tokens, padding included, instead of a number of "
        "rows. 0: batch_size rows.",
    )
    batching: Batching = Field(
        Batching.BUCKETED,
        title="Batching",
        description="bucketed puts rows of similar length together: little is computed on padding; shuffled any.",
    )
    schedule: Schedule = Field(
        Schedule.LINEAR, title="Schedule", description="How the learning rate falls after warm-up."
    )
    warmup: float = Field(
        0.1, ge=0, lt=1, title="Warm-up", description="Fraction of the steps in which the learning rate rises."
    )
    weight_decay: float = Field(
        0.01, ge=0, le=10, title="Weight decay", description="Decoupled weight decay of matrices."
    )
    clip_norm: float = Field(1.0, gt=0, title="Gradient clipping", description="Largest global gradient norm.")
    precision: Precision = Field(
        Precision.AUTO,
        title="Precision",
        description="auto takes bf16 where the hardware runs it natively and faster than fp32, and never fp8, which "
        "needs an NVIDIA GPU of compute capability 8.9 and the extra 'training'.",
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, title="Layer decay", description="Factor on the learning rate per layer below the head."
    )
    micro_batch: int = Field(
        0,
        ge=0,
        le=65536,
        title="Micro-batch",
        description="Rows computed at once, to save memory; their gradients add up to the batch's. 0: the whole batch.",
    )
    max_memory: float = Field(
        0.0,
        ge=0,
        le=1e6,
        title="Memory limit",
        description="Most that training may hold, in GB (10^9 bytes): a machine's processes together, or each GPU. "
        "How many rows are computed at once, up to micro_batch, and whether activations are computed again is then "
        "chosen to stay below it; the batch stays the same. 0: nothing is planned.",
    )
    embeddings: Embeddings = Field(
        Embeddings.SPARSE,
        title="Token embeddings",
        description="sparse trains the rows of the table that a batch touched (on a CPU, and with optimizers of Adam's "
        "scale; else dense), dense all of them, frozen none: least memory, fastest steps.",
    )
    activation_checkpointing: bool = Field(
        False,
        title="Activation checkpointing",
        description="Computes activations again in the backward pass instead of keeping them: less memory, "
        "a third more time.",
    )
    offload_optimizer: bool = Field(
        False,
        title="Optimizer offload",
        description="Keeps the optimizer's state in the host's memory and updates the weights there: 8 bytes per "
        "parameter less on a GPU, for slower steps. Changes nothing on a CPU.",
    )
    compile: Annotated[Compile, BeforeValidator(lambda value: "off" if value is False else value)] = Field(
        Compile.OFF,  # which YAML reads as false
        title="Compile",
        description="auto compiles the layers with torch.compile if that is faster in a trial on the first batches; "
        "runs under a minute are not tried.",
    )
    lora_rank: int = Field(
        0,
        ge=0,
        le=4096,
        title="LoRA rank",
        description="Trains low-rank updates of the linear layers, merged at the end; needs the extra 'training'. "
        "0: trains the layers themselves.",
    )

    num_processes: int = Field(
        1,
        ge=1,
        le=1024,
        title="Processes",
        description="Processes on this machine that train together (torchrun): one per GPU, or a share of the "
        "cores each.",
    )
    parallelism: Parallelism = Field(
        Parallelism.REPLICATED,
        title="Parallelism",
        description="What several processes share. replicated: the rows of a batch; sharded: also parameters, "
        "gradients and optimizer state (FSDP2), least memory; tensor: heads and FFN channels of each layer, and all "
        "compute all rows. The last two train embeddings densely, not in fp16 or fp8, and not with adamw-8bit, "
        "adafactor or sgd.",
    )

    @model_validator(mode="after")
    def _processes_can_train(self) -> Self:
        reason = unsuited(
            self.parallelism,
            optimizer=self.optimizer,
            precision=self.precision,
            lora_rank=self.lora_rank,
            offload_optimizer=self.offload_optimizer,
        )
        if self.num_processes > 1 and reason:
            raise ValueError(reason)
        return self

    def for_trainer(self) -> dict[str, Any]:
        """Returns the keyword arguments of ``trainer.fit`` among the fields of this class."""
        other = {*MODEL_FIELDS, "num_processes"}
        return {name: getattr(self, name) for name in OptimizerConfig.model_fields if name not in other}

    def for_model(self) -> dict[str, Any]:
        """Returns the keyword arguments of ``trainable.prepared`` among the fields of this class."""
        return {name: getattr(self, name) for name in MODEL_FIELDS}


MODEL_FIELDS = ("embeddings", "activation_checkpointing", "lora_rank", "parallelism")
"""What of an ``OptimizerConfig`` concerns the model, and not the loop."""


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

    Quality is over the split that ``split`` names; latency is one real sentence (batch 1).
    """

    split: Literal["", "selection", "test"] = ""
    num_examples: int | None = None
    """Rows that quality was measured on (n)."""
    accuracy: float | None = None
    loss: float | None = None
    """Mean cross-entropy in nats per row."""
    train_accuracy: float | None = None
    overfit_gap: float | None = None
    """Accuracy on train minus accuracy on the selection split."""
    agreement_with_teacher: float | None = None
    """Fraction of rows on which teacher and model give the same label."""
    agreement_with_unquantized: float | None = None
    """Fraction of rows on which the model gives the same label before and after (simulated) quantization."""
    label_flips: int | None = None
    """Rows of the selection split whose label differs between the runtime and the simulated model."""
    max_abs_error: float | None = None
    """Largest absolute logit difference between the runtime and the simulated model."""
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
        """Returns the measured numbers by name, without ``split`` and whatever was not measured."""
        return {name: float(value) for name, value in self.model_dump(exclude={"split"}).items() if value is not None}


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

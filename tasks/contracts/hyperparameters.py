"""How a training is set up: optimizer, schedule, precision, batches, parallelism. Counts in every key that learns."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from tasks.contracts.base import StageConfig


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

    epochs: float = Field(3, gt=0, le=1000, title="Epochs")
    """Passes over the training rows."""
    optimizer: Optimizer = Field(Optimizer.ADAMW, title="Optimizer")
    """Each has its own scale of learning rates. lion, schedule-free-adamw and adamw-8bit need the extra 'training'."""
    learning_rate: float = Field(1e-4, gt=0, le=100, title="Learning rate")
    """Peak learning rate."""
    batch_size: int = Field(32, ge=1, le=65536, title="Batch size")
    """Rows per optimizer step."""
    batch_tokens: int = Field(0, ge=0, le=2**24, title="Tokens per batch")
    """A batch holds as many rows as fit into this many tokens, padding included, instead of a number of rows. 0:
    batch_size rows."""
    batching: Batching = Field(Batching.BUCKETED, title="Batching")
    """bucketed puts rows of similar length together: little is computed on padding; shuffled any."""
    schedule: Schedule = Field(Schedule.LINEAR, title="Schedule")
    """How the learning rate falls after warm-up."""
    warmup: float = Field(0.1, ge=0, lt=1, title="Warm-up")
    """Fraction of the steps in which the learning rate rises."""
    weight_decay: float = Field(0.01, ge=0, le=10, title="Weight decay")
    """Decoupled weight decay of matrices."""
    clip_norm: float = Field(1.0, gt=0, title="Gradient clipping")
    """Largest global gradient norm."""
    precision: Precision = Field(Precision.AUTO, title="Precision")
    """auto takes bf16 where the hardware runs it natively and faster than fp32, and never fp8, which needs an NVIDIA
    GPU of compute capability 8.9 and the extra 'training'."""
    layer_decay: float = Field(1.0, gt=0, le=1, title="Layer decay")
    """Factor on the learning rate per layer below the head."""
    micro_batch: int = Field(0, ge=0, le=65536, title="Micro-batch")
    """Rows computed at once, to save memory; their gradients add up to the batch's. 0: the whole batch."""
    max_memory: float = Field(0.0, ge=0, le=1e6, title="Memory limit")
    """Most that training may hold, in GB (10^9 bytes): a machine's processes together, or each GPU. How many rows are
    computed at once, up to micro_batch, and whether activations are computed again is then chosen to stay below it; the
    batch stays the same. 0: nothing is planned."""
    embeddings: Embeddings = Field(Embeddings.SPARSE, title="Token embeddings")
    """sparse trains the rows of the table that a batch touched (on a CPU, and with optimizers of Adam's scale; else
    dense), dense all of them, frozen none: least memory, fastest steps."""
    activation_checkpointing: bool = Field(False, title="Activation checkpointing")
    """Computes activations again in the backward pass instead of keeping them: less memory, a third more time."""
    offload_optimizer: bool = Field(False, title="Optimizer offload")
    """Keeps the optimizer's state in the host's memory and updates the weights there: 8 bytes per parameter less on a
    GPU, for slower steps. Changes nothing on a CPU."""
    compile: Annotated[Compile, BeforeValidator(lambda value: "off" if value is False else value)] = Field(
        Compile.OFF,  # which YAML reads as false
        title="Compile",
    )
    """auto compiles the layers with torch.compile if that is faster in a trial on the first batches; runs under a
    minute are not tried."""
    lora_rank: int = Field(0, ge=0, le=4096, title="LoRA rank")
    """Trains low-rank updates of the linear layers, merged at the end; needs the extra 'training'. 0: trains the layers
    themselves."""

    num_processes: int = Field(1, ge=1, le=1024, title="Processes")
    """Processes on this machine that train together (torchrun): one per GPU, or a share of the cores each."""
    parallelism: Parallelism = Field(Parallelism.REPLICATED, title="Parallelism")
    """What several processes share. replicated: the rows of a batch; sharded: also parameters, gradients and optimizer
    state (FSDP2), least memory; tensor: heads and FFN channels of each layer, and all compute all rows. The last two
    train embeddings densely, not in fp16 or fp8, and not with adamw-8bit, adafactor or sgd."""

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

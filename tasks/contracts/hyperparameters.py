"""How a training is set up: what it learns with, and how a machine computes it. Counts in every key that learns."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from tasks.contracts.base import PlainText, StageConfig


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


class ComputeConfig(StageConfig):
    """How a machine computes whatever is trained; said once for the run."""

    precision: Precision = Field(Precision.AUTO, title="Precision")
    """auto takes bf16 where the hardware runs it natively and faster than fp32, and never fp8, which needs an NVIDIA
    GPU of compute capability 8.9 and the extra 'training'. While integer activations are simulated it is fp32:
    in fewer bits the rest of the model would be rounded about as much as quantization rounds. Of a decoder in blocks
    only codes are found in fp32."""
    compile: Annotated[Compile, BeforeValidator(lambda value: "off" if value is False else value)] = Field(
        Compile.OFF,  # which YAML reads as false
        title="Compile",
    )
    """auto compiles the layers with torch.compile if that is faster in a trial on the first batches; runs under a
    minute are not tried."""
    batching: Batching = Field(Batching.BUCKETED, title="Batching")
    """bucketed puts rows of similar length together: little is computed on padding; shuffled any."""
    micro_batch: int = Field(0, ge=0, le=65536, title="Micro-batch")
    """Rows computed at once, to save memory; their gradients add up to the batch's. 0: the whole batch."""
    max_memory: float = Field(0.0, ge=0, le=1e6, title="Memory limit")
    """Most that training may hold, in GB (10^9 bytes): a machine's processes together, or each GPU. How many rows are
    computed at once, up to micro_batch, and whether activations are computed again is then chosen to stay below it; the
    batch stays the same. 0: nothing is planned."""
    activation_checkpointing: bool = Field(False, title="Activation checkpointing")
    """Computes activations again in the backward pass instead of keeping them: less memory, a third more time."""
    offload_optimizer: bool = Field(False, title="Optimizer offload")
    """Keeps the optimizer's state in the host's memory and updates the weights there: 8 bytes per parameter less on a
    GPU, for slower steps. Changes nothing on a CPU."""
    num_processes: int = Field(1, ge=1, le=1024, title="Processes")
    """Most processes on this machine that train together (torchrun): one per GPU, or a share of the cores each. Two of
    one core are faster than one of two."""
    parallelism: Parallelism = Field(Parallelism.REPLICATED, title="Parallelism")
    """What several processes share. replicated: the rows of a batch; sharded: also parameters, gradients and optimizer
    state (FSDP2), least memory; tensor: heads and FFN channels of each layer, and all compute all rows. The last two
    train embeddings densely, not in fp16 or fp8, and not with adamw-8bit, adafactor or sgd."""

    def for_trainer(self) -> dict[str, Any]:
        """Returns the keyword arguments of ``Lesson.learn`` among the fields."""
        return self.model_dump(mode="json", exclude={"num_processes", *self.for_model()})

    def for_model(self) -> dict[str, Any]:
        """Returns the keyword arguments of ``trainable.prepared`` among the fields."""
        return self.model_dump(mode="json", include={"activation_checkpointing", "parallelism"})


class OptimizerConfig(StageConfig):
    """What any stage learns with."""

    optimizer: Optimizer = Field(Optimizer.ADAMW, title="Optimizer")
    """Each has its own scale of learning rates. lion, schedule-free-adamw and adamw-8bit need the extra 'training'."""
    learning_rate: float = Field(1e-4, gt=0, le=100, title="Learning rate")
    """Peak learning rate."""
    batch_size: Annotated[PlainText, BeforeValidator(lambda value: str(value) if type(value) is int else value)] = (
        Field("32", pattern=r"^[1-9][0-9]{0,6}( tokens)?$", title="Batch size")
    )
    """Rows per optimizer step, such as 32; or as many as fit into so many tokens, padding included: 4096 tokens."""
    schedule: Schedule = Field(Schedule.LINEAR, title="Schedule")
    """How the learning rate falls after warm-up."""
    warmup: float = Field(0.1, ge=0, lt=1, title="Warm-up")
    """Fraction of the steps in which the learning rate rises."""
    embeddings: Embeddings = Field(Embeddings.SPARSE, title="Token embeddings")
    """sparse trains the rows of the table that a batch touched (on a CPU, and with optimizers of Adam's scale; else
    dense), dense all of them, frozen none: least memory, fastest steps."""

    def rank(self) -> int:
        """Of the low-rank updates that are trained instead of the layers; 0: the layers themselves."""
        return getattr(self, "lora_rank", 0)

    def for_trainer(self) -> dict[str, Any]:
        """Returns the keyword arguments of ``trainer.fit`` among the fields."""
        number, _, unit = self.batch_size.partition(" ")
        given = self.model_dump(mode="json", include={*FOR_TRAINER})
        return given | {"batch_size": 0, "batch_tokens": int(number)} if unit else given | {"batch_size": int(number)}

    def for_model(self) -> dict[str, Any]:
        """Returns the keyword arguments of ``trainable.prepared`` among the fields."""
        return {"embeddings": self.embeddings.value, "lora_rank": self.rank()}


FOR_TRAINER = (
    "optimizer",
    "learning_rate",
    "schedule",
    "warmup",
    "epochs",
    "steps",
    "weight_decay",
    "clip_norm",
    "layer_decay",
    "evaluations_per_epoch",
    "patience",
)

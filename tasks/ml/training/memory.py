"""What training will hold at its peak, by theory, and how much of a batch is computed at once to stay below a limit.

peak = held when it begins + SLACK × (gradients + optimizer state + best weights + a tutor's answers
       + rows computed at once × what one of the longest takes) + LIBRARIES
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml import machine
from tasks.ml.parallel import world
from tasks.ml.quality import evaluation
from tasks.ml.training import trainable
from tasks.ml.training.activations import Demand
from tasks.ml.training.optimizers import Optimizers

GB = 1e9
SLACK = 1.25
LIBRARIES = 60e6
"""What is resident over what tensors hold: gaps that an allocator leaves, and bytes that libraries take in their first
steps. Chosen once, so that fifteen runs of encoders of 0.2 to 14 million parameters on a CPU, with 14 to 2013 MB
of tensors to come, stayed at least 14 MB below: in fp32 and bf16, whole batches and down to a row at a time, with and
without checkpointing, 64 to 256 tokens. Five distillations of MiniLM, measured later, stayed 169 to 499 MB below what
was predicted, 1167 to 3111 MB. No GPU was among them."""
FEW_ROWS = 8
"""Below so many rows at once, computing activations again (a third more time) costs less than products that small."""


@dataclass(frozen=True)
class Plan:
    """How a run stays below its limit. 10^6 bytes, of each process."""

    rows_at_once: int
    """0: whole batches."""
    checkpointing: bool
    predicted_mb: float
    limit_mb: float
    measured_mb: float | None = None
    """The peak, once there was one."""


def _held(device: torch.device) -> float:
    """Bytes that this process holds, on its GPU or else resident; its peak is counted from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if sys.platform != "linux":
        raise FeatherweightError("max_memory: what a process holds is known on Linux and on GPUs only; set it to 0")
    machine.give_back_memory()
    machine.forget_peak_memory()
    return machine.resident_memory_mb() * 1e6


def _to_come(model: nn.Module, optimizers: Optimizers, tokens: int, *, state_elsewhere: bool) -> dict[str, float]:
    """Bytes that stay with this process: of gradients several processes have a second copy, to exchange them."""
    tables = {id(p) for p in optimizers.tables}
    trained = [p for p in model.parameters() if p.requires_grad]
    # Rows of a table as they were touched, and again as unique ones, while they are put together.
    gradients = sum(3 * tokens * p.shape[1] * 4 if id(p) in tables else world.local(p).nbytes for p in trained)
    return {
        "gradients": gradients * min(2, world.size()),
        "optimizer state": 0 if state_elsewhere else optimizers.state_bytes_to_come(),
        "best weights": sum(world.local(p).nbytes for p in model.state_dict().values()),
    }


def evenly(batch: int, most: int) -> int:
    """Rows of each of the fewest micro-batches of at most ``most`` rows, which are about equal."""
    return -(-batch // -(-batch // most))


def choose(
    model: nn.Module,
    optimizers: Optimizers,
    demand: Demand,
    *,
    max_memory: float,
    batch: int,
    micro_batch: int,
    length: int,
    state_elsewhere: bool,
) -> Plan:
    """Chooses how many rows are computed at once, and whether their activations are kept or computed again.

    The whole batch is best; then even parts of it, of ``FEW_ROWS`` and more; then activations computed again; then
    fewer rows. To be called when training begins, because what is held by then counts.

    Args:
        max_memory: limit of all processes of this machine or, where they have GPUs, of each, in 10^9 bytes.
        batch: rows of a batch of the longest, of those that a process computes.
        micro_batch: rows computed at once at most; 0: no such limit.
        length: tokens of the longest row.
        state_elsewhere: whether the optimizer's state is not where the model is.

    Raises:
        FeatherweightError: not even one row fits into the limit.
    """
    device = next(model.parameters()).device
    sharing = 1 if device.type == "cuda" else world.size_here()
    to_come = _to_come(model, optimizers, batch * length, state_elsewhere=state_elsewhere)
    to_come |= {"a tutor's answers": demand.answers, "copies of weights": demand.once}
    fixed = max(world.everybody([_held(device) + SLACK * sum(to_come.values()) + LIBRARIES]))
    limit, most = max_memory * GB / sharing, min(micro_batch or batch, batch)
    asked = getattr(model, "is_activation_checkpointing", False)
    for again in (False, True):
        row = SLACK * (demand.row_again if again or asked else demand.row)
        rows = evenly(most, max(1, min(most, int((limit - fixed) / row))))
        if fixed + rows * row <= limit and (again or rows >= min(FEW_ROWS, most)):
            break
    else:
        parts = ", ".join(f"{value / GB:.3f} for {name}" for name, value in to_come.items() if value)
        raise FeatherweightError(
            f"max_memory: {max_memory:g} GB is too little: a row at a time takes at least "
            f"{sharing * (fixed + row) / GB:.3f}, in each process {parts}; embeddings frozen, lora_rank, or an "
            "optimizer with less state would take less"
        )
    return Plan(
        rows_at_once=0 if rows == batch else rows,
        checkpointing=again or asked,
        predicted_mb=round((fixed + rows * row) / 1e6, 3),
        limit_mb=round(limit / 1e6, 3),
    )


@contextlib.contextmanager
def kept_to(plan: Plan | None, model: Any, notes: dict[str, Any]) -> Iterator[None]:
    """Lets a model be trained and evaluated as planned while it is open; notes the plan, in the end with the peak."""
    if plan is None:
        yield
        return
    device = next(model.parameters()).device
    _held(device)
    notes["memory"] = asdict(plan)
    with ExitStack() as undo:
        if plan.rows_at_once:
            undo.enter_context(evaluation.at_most(plan.rows_at_once))
        if plan.checkpointing and not model.is_activation_checkpointing:
            undo.enter_context(trainable.checkpointed(model))
        yield
    mine = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else machine.peak_memory_mb() * 1e6
    notes["memory"]["measured_mb"] = round(max(world.everybody([mine])) / 1e6, 3)


def remembered(notes: Mapping[str, Any]) -> Plan | None:
    """The plan of a run that is resumed, from its notes."""
    return Plan(**notes["memory"]) if "memory" in notes else None

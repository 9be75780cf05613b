"""Optimizer state in the host's memory while a GPU trains: updates are computed where the state is.

Ren et al. 2021, ZeRO-Offload (arXiv:2101.06840). torchao's ``CPUOffloadOptimizer`` does the same for one GPU, but takes
gradients away as they are computed: before they are clipped, and before a loss scale is divided out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from tasks.contracts.base import FeatherweightError
from tasks.ml.training.optimizers import Optimizers


def _twin(tensor: torch.Tensor) -> torch.Tensor:
    """A place on the host for such a tensor, which a GPU can copy to and from by itself."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda", requires_grad=False)


def _replace(optimizer: torch.optim.Optimizer, other: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for group in optimizer.param_groups:
        group["params"] = [other(p) for p in group["params"]]
    optimizer.state = defaultdict(dict, {other(p): state for p, state in optimizer.state.items()})


@torch.no_grad()
def step_on_host(optimizer: torch.optim.Optimizer) -> None:
    """Makes each step of an optimizer happen on the host: its state will be there. To be called before the first step.

    Between steps its parameters are those of the model, as ever.
    """
    twins = {p: _twin(p) for group in optimizer.param_groups for p in group["params"]}
    gradients = {p: _twin(p) for p in twins}
    owners = {twin: p for p, twin in twins.items()}
    on_gpu = any(p.device.type == "cuda" for p in twins)

    @torch.no_grad()
    def leave(optimizer: Any, *_: Any) -> None:
        for p, twin in twins.items():
            twin.copy_(p, non_blocking=True)
            twin.grad = None if p.grad is None else gradients[p].copy_(p.grad, non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize()
        for name in ("found_inf", "grad_scale"):
            # Loss scaling and clipping leave them on the GPU, and a fused step would not wait for its own copy.
            if getattr(optimizer, name, None) is not None:
                setattr(optimizer, name, getattr(optimizer, name).cpu())
        _replace(optimizer, twins.__getitem__)

    @torch.no_grad()
    def return_(optimizer: Any, *_: Any) -> None:
        _replace(optimizer, owners.__getitem__)
        for p, twin in twins.items():
            p.copy_(twin, non_blocking=True)

    optimizer.register_step_pre_hook(leave)
    optimizer.register_step_post_hook(return_)


def to_host(optimizers: Optimizers) -> str:
    """Moves what will be the state of optimizers to the host's memory, and says what that came to.

    Raises:
        FeatherweightError: the optimizer uses its state between steps too.
    """
    if all(p.device.type == "cpu" for p in optimizers.parameters):
        return "none: on a CPU the state is in the host's memory anyway"
    if optimizers.description.schedule_free:
        raise FeatherweightError(
            "offload_optimizer: a schedule-free optimizer uses its state in evaluations too; choose another, like adamw"
        )
    for member in optimizers.members:
        step_on_host(member)
    return "state in the host's memory"

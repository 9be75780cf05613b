"""What each of several processes holds of a model that they train together: all of it, or a part.

``replicated``: every process holds all of it and computes its share of the rows (``synchronization.Replicated``).
``sharded``: each holds a part of every parameter, gradient and optimizer state, and the others' only while it computes
a layer; rows are shared. ``tensor``: each computes some heads and FFN channels of every layer, of all rows.
R = processes, B = rows, S = tokens, H = hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import architectures, families
from tasks.ml.parallel import world


def _mesh(model: nn.Module) -> DeviceMesh:
    return init_device_mesh(next(model.parameters()).device.type, (world.size(),))


def _start_alike(model: nn.Module) -> None:
    """Gives every process the first one's weights: what was drawn at random differs, such as adapters."""
    for parameter in model.parameters():
        distributed.broadcast(parameter.data, src=0)


@contextmanager
def _sharded(model: nn.Module) -> Iterator[None]:
    """Fully sharded data parallelism (FSDP2): Zhao et al. 2023 (arXiv:2304.11277); stage 3 of ZeRO, Rajbhandari et al.
    2020 (arXiv:1910.02054).

    Each micro-batch's gradients are reduced at once: kept for the last, as DDP keeps them, they would be whole.
    """
    _start_alike(model)
    mesh = _mesh(model)
    # The root gives its whole parameters back after the forward pass too: after an evaluation no backward pass does it.
    for module in (*architectures.of_model(model).layer_list(model), model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    yield


@contextmanager
def _tensor(model: nn.Module) -> Iterator[None]:
    """Tensor parallelism, Shoeybi et al. 2019 (arXiv:1909.08053): query, key, value and the first FFN matrix are cut by
    output, the matrices after them by input, the token embeddings by token. Norms and the head are everywhere.

    All processes draw the same random numbers, so that they drop the same elements of what they all compute; heads of
    the same place in different processes then drop alike too.
    """
    _start_alike(model)
    family, mesh = families.of_model(model), _mesh(model)
    for index, layer in enumerate(family.layer_list(model)):
        for what, count in (("heads", family.num_heads(layer)), ("FFN channels", family.ffn_width(layer))):
            if count % mesh.size():
                raise FeatherweightError(
                    f"parallelism: tensor gives each process as many {what} as any other, and layer {index} has "
                    f"{count} for {mesh.size()}: choose another num_processes, or sharded"
                )
        there = dict(layer.named_modules())  # what pruning took away whole has no matrices
        by_output = {name: ColwiseParallel() for name in family.cut_by_output if isinstance(there.get(name), nn.Linear)}
        by_input = {name: RowwiseParallel() for name in family.cut_by_input if isinstance(there.get(name), nn.Linear)}
        parallelize_module(layer, mesh, {**by_output, **by_input})
    parallelize_module(family.token_embedding(model), mesh, RowwiseParallel(input_layouts=Replicate()))
    torch.manual_seed(world.first(torch.initial_seed()))
    with world.same_rows():
        yield


WAYS: dict[str, Callable[[nn.Module], AbstractContextManager[Any]]] = {
    "replicated": nullcontext,
    "sharded": _sharded,
    "tensor": _tensor,
}


def spread(model: nn.Module, way: str) -> AbstractContextManager[None]:
    """Leaves this process its part of a model, in place; while it is open, rows are shared as the way has it.

    With one process nothing is done. A model that was spread stays so: ``world.whole`` puts its tensors together.

    Raises:
        FeatherweightError: the model cannot be cut into as many parts.
    """
    return WAYS[way](model) if world.size() > 1 else nullcontext()


def whole_output(module: nn.Module, output: torch.Tensor) -> torch.Tensor:
    """What a module put out, put together where each process computes a part of it: (B, S, H / R) → (B, S, H)."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, DTensor) or output.shape[-1] == weight.shape[0]:
        return output
    return DTensor.from_local(output, weight.device_mesh, [Shard(-1)]).full_tensor()

"""Processes of one machine that train the same weights, in memory that they share.

gloo sends gradients through the loopback network, and every process then updates all weights for itself. Here gradients
meet where all can read them, and of the weights, which all read, each process sums, clips and updates its own part: a
reduce-scatter and the sharded optimizer of ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054, section 5) without a copy.
R = processes, n = weights with dense gradients; a table has V rows of D, of which a batch touches k.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import distributed, nn

FOLDER = Path("/dev/shm")
CHUNK = 2**16
"""Gradients that are added and squared at a time: few enough to stay in a core's cache between the two."""


def is_possible(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether all processes are on this machine, train in fp32 on its CPU, and it offers memory to share.

    All processes are to ask, and get the same answer.
    """
    needed = 4 * (1 + distributed.get_world_size()) * sum(p.numel() for p in parameters)
    suits = (
        distributed.get_backend() == "gloo"
        and os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
        and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters)
        and FOLDER.is_dir()
        and shutil.disk_usage(FOLDER).free > 2 * needed
    )
    all_suit = torch.tensor(int(suits))
    distributed.all_reduce(all_suit, op=distributed.ReduceOp.MIN)
    return bool(all_suit)


def allocate(*shape: int) -> torch.Tensor:
    """Memory for floats, zero, the same for every process; its file has no name any more when this returns."""
    names: list[str] = [""]
    if distributed.get_rank() == 0:
        descriptor, names[0] = tempfile.mkstemp(prefix="featherweight-", dir=FOLDER)
        os.close(descriptor)
    distributed.broadcast_object_list(names)
    try:
        count = torch.Size(shape).numel()
        shared = torch.from_file(names[0], shared=True, size=count).view(shape)
        distributed.barrier()
    finally:
        if distributed.get_rank() == 0:
            Path(names[0]).unlink()
    return shared


class _Table:
    """Where processes leave the rows of a sparse gradient. Pages that no row ever reaches take no memory."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter, (self.height, self.width) = parameter, parameter.shape
        # Of each process: k, then V indices, then V rows.
        self.memory = allocate(distributed.get_world_size(), 1 + self.height * (1 + self.width))

    def put(self) -> None:
        """Leaves this process's rows."""
        mine = self.memory[distributed.get_rank()]
        numbers = mine.view(torch.int32)
        numbers[0] = 0
        if self.parameter.grad is not None:
            gradient = self.parameter.grad.coalesce()
            indices, values = gradient.indices()[0], gradient.values()
            numbers[0] = len(indices)
            numbers[1 : 1 + len(indices)] = indices
            mine[1 + self.height :][: values.numel()].view_as(values).copy_(values)

    def total(self) -> torch.Tensor:
        """The sparse sum of the gradients of all processes."""
        indices, values = [], []
        for one in self.memory:
            count = int(one.view(torch.int32)[0])
            indices.append(one.view(torch.int32)[1 : 1 + count])
            values.append(one[1 + self.height :][: count * self.width].view(count, self.width))
        return torch.sparse_coo_tensor(torch.cat(indices)[None], torch.cat(values), self.parameter.shape).coalesce()


def _move(place: torch.Tensor, parameter: torch.Tensor) -> None:
    if parameter.grad is not place and parameter.grad is not None:
        parameter.grad = place.copy_(parameter.grad)


def _widen(place: torch.Tensor, weight: nn.Parameter, rounded: torch.Tensor) -> None:
    """Adds the gradient of a rounded weight to that of the weight itself, as autocast would."""
    if rounded.grad is not None:
        weight.grad = place.copy_(rounded.grad) if weight.grad is None else place.add_(rounded.grad)
        rounded.grad = None


class _Rounded:
    """Weights of linear layers in the type of their products, which each process rounds where it has updated them.

    Layers that were given another product than their class's are left alone: what they make of a weight needs it whole.
    Autocast would round all of them in every process and every pass, and leave a wide gradient to be moved once more.

    Args:
        places: where the gradient of each weight goes, by its ``id``.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, places: dict[int, torch.Tensor]) -> None:
        holders = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
        self.layers = [
            module
            for module in model.modules()
            if type(module) is nn.Linear
            and "forward" not in vars(module)
            and id(module.weight) in places
            and holders[id(module.weight)] == 1
        ]
        self.weights = [layer.get_parameter("weight") for layer in self.layers]
        sizes = [weight.numel() for weight in self.weights]
        parts = allocate(-(-sum(sizes) * dtype.itemsize // 4)).view(dtype)[: sum(sizes)].split(sizes)
        self.rounded = [nn.Parameter(one.view_as(w)) for one, w in zip(parts, self.weights, strict=True)]
        for weight, rounded in zip(self.weights, self.rounded, strict=True):
            rounded.register_post_accumulate_grad_hook(partial(_widen, places[id(weight)], weight))

    def refresh(self, mine: Collection[int]) -> None:
        for weight, rounded in zip(self.weights, self.rounded, strict=True):
            if id(weight) in mine:
                rounded.data.copy_(weight.data)

    def _install(self, weights: Sequence[nn.Parameter]) -> None:
        for layer, weight in zip(self.layers, weights, strict=True):
            layer.weight = weight

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        self._install(self.rounded)
        try:
            yield
        finally:
            self._install(self.weights)


class SharedWeights:
    """The trained weights of a model, moved to shared memory until ``close``.

    Args:
        parameters: those that are trained.
        tables: those among them whose gradients are sparse.
        autocast: what linear layers compute in, if not in fp32.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        tables: Sequence[nn.Parameter],
        autocast: torch.dtype | None,
    ) -> None:
        rank, size = distributed.get_rank(), distributed.get_world_size()
        sparse = {id(p) for p in tables}
        self.parameters = [*(p for p in parameters if id(p) not in sparse), *tables]
        weights = allocate(sum(p.numel() for p in self.parameters))
        self.tables = [_Table(table) for table in tables]
        self.spans: list[slice] = []
        end = 0
        for p in self.parameters:
            start, end = end, end + p.numel()
            self.spans.append(slice(start, end))
            place = weights[start:end].view_as(p)
            if rank == 0:
                place.copy_(p.data)
            p.data = place
        self.dense = len(self.parameters) - len(tables)
        count = self.spans[self.dense - 1].stop if self.dense else 0
        self.gradients = allocate(size, max(count, 1))
        # A table has few rows to update: the first process takes all of them.
        owners = [span.start * size // count for span in self.spans[: self.dense]] + [0] * len(tables)
        self.mine = {id(p) for p, owner in zip(self.parameters, owners, strict=True) if owner == rank}
        own = [span for span, owner in zip(self.spans[: self.dense], owners, strict=False) if owner == rank]
        self.part = slice(own[0].start, own[-1].stop) if own else slice(0, 0)
        here = self.gradients[rank]
        pairs = zip(self.parameters[: self.dense], self.spans, strict=False)
        self.places = [(p, here[span].view_as(p)) for p, span in pairs]
        # A gradient is moved where it was just computed: it is in the cache then, and its memory serves the next one.
        self.hooks = [p.register_post_accumulate_grad_hook(partial(_move, place)) for p, place in self.places]
        self.squares: list[torch.Tensor] = []
        self.rounded = _Rounded(model, autocast, {id(p): place for p, place in self.places}) if autocast else None
        self.updated()

    def passing(self) -> contextlib.AbstractContextManager[None]:
        """To be open during passes: layers then have the weights that their products take."""
        return self.rounded.installed() if self.rounded else contextlib.nullcontext()

    def updated(self) -> None:
        """To be called when this process's weights have changed; returns when all have done so."""
        if self.rounded:
            self.rounded.refresh(self.mine)
        distributed.barrier()

    def exchange(self) -> None:
        """Leaves the sum over processes at the weights that are this process's, and none at the others."""
        for table in self.tables:
            table.put()
        for p, place in self.places:
            if p.grad is None:
                place.zero_()
        distributed.barrier()
        rank = distributed.get_rank()
        others = [gradients for other, gradients in enumerate(self.gradients) if other != rank]
        self.squares = []
        for start in range(self.part.start, self.part.stop, CHUNK):
            chunk = slice(start, min(start + CHUNK, self.part.stop))
            total = self.gradients[rank, chunk]
            for gradients in others:
                total.add_(gradients[chunk])
            self.squares.append(torch.dot(total, total))
        for p, place in self.places:
            p.grad = place if id(p) in self.mine else None
        for table in self.tables:
            table.parameter.grad = None
            if id(table.parameter) in self.mine:
                table.parameter.grad = total = table.total()
                values = total.values().view(-1)
                self.squares.append(torch.dot(values, values))

    def sum_of_squares(self) -> torch.Tensor:
        """Of the gradients that ``exchange`` left with this process."""
        return torch.stack(self.squares).sum() if self.squares else torch.zeros(())

    def close(self) -> None:
        """Gives the weights memory of their own again."""
        distributed.barrier()
        for hook in self.hooks:
            hook.remove()
        for p in self.parameters:
            p.grad = None
            p.data = p.data.clone()

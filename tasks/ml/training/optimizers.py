"""Optimizers by name: where each comes from, what it costs in memory, and which parameters it takes.

All of them are torch's own or a well-kept package's. Weight decay is decoupled from the gradient (Loshchilov & Hutter
2019, arXiv:1711.05101) and leaves out biases and norms, which have no over-fitting capacity worth decaying.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from tasks.contracts.base import FeatherweightError
from tasks.ml.parallel import world


@dataclass(frozen=True)
class Description:
    """What one should know of an optimizer before choosing it."""

    target: str
    """Where its class is: ``module:name``."""
    paper: str
    bytes_per_parameter: float
    """Optimizer state of a large matrix, beside 4 bytes of weight and 4 of gradient."""
    learning_rate_factor: float
    """Peak learning rate as a multiple of what suits AdamW: where a comparison starts from."""
    options: Mapping[str, Any] = field(default_factory=dict)
    matrices_only: bool = False
    """Whether it takes hidden matrices alone; embeddings, heads, biases and norms then go to AdamW."""
    schedule_free: bool = False
    """Whether it averages weights instead of letting the learning rate fall after warm-up."""
    package: str = "torch"

    @property
    def adam_scaled(self) -> bool:
        """Whether a learning rate means what it means to Adam, so that Adam may take some of the parameters."""
        return self.learning_rate_factor == 1

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.target.partition(":")[0].partition(".")[0]) is not None


OPTIMIZERS = {
    "adamw": Description("torch.optim:AdamW", "Loshchilov & Hutter 2019, arXiv:1711.05101", 8, 1, {"fused": True}),
    "adamw-8bit": Description(
        "torchao.optim:AdamW8bit", "Dettmers et al. 2022, arXiv:2110.02861", 2.03, 1, package="torchao"
    ),
    "adafactor": Description("torch.optim:Adafactor", "Shazeer & Stern 2018, arXiv:1804.04235", 0.01, 10),
    "lion": Description(
        "pytorch_optimizer:Lion", "Chen et al. 2023, arXiv:2302.06675", 4, 0.2, package="pytorch-optimizer"
    ),
    "muon": Description(
        "torch.optim:Muon",
        "Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982",
        4,
        1,
        {"adjust_lr_fn": "match_rms_adamw"},
        matrices_only=True,
    ),
    "schedule-free-adamw": Description(
        "pytorch_optimizer:ScheduleFreeAdamW",
        "Defazio et al. 2024, arXiv:2405.15682",
        8,
        2,
        schedule_free=True,
        package="pytorch-optimizer",
    ),
    "sgd": Description(
        "torch.optim:SGD", "Robbins & Monro 1951; momentum: Polyak 1964", 4, 300, {"momentum": 0.9, "fused": True}
    ),
}


def describe(name: str) -> Description:
    """Returns what is known of an optimizer.

    Raises:
        FeatherweightError: there is none of this name.
    """
    if name not in OPTIMIZERS:
        raise FeatherweightError(f"optimizer: {name!r} is not known; choose one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def _class(description: Description) -> type[torch.optim.Optimizer]:
    module, _, name = description.target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise FeatherweightError(
            f"optimizer: {name} is in the package {description.package}, which is not installed: "
            "pip install 'featherweight[training]'"
        ) from error


def depth(name: str, num_layers: int) -> int:
    """Height of a parameter by its qualified name: embeddings 0, layer i at i + 1, what is above them at the top."""
    if found := re.search(r"\.(?:layers?|h)\.(\d+)\.", f".{name}"):
        return int(found.group(1)) + 1
    return 0 if re.search(r"embed|\.w[tp]e\.", f".{name}") else num_layers + 1


def _leaves(value: Any, key: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Plain tensors that an entry of the state consists of: a quantized one has codes, scales and a table."""
    if isinstance(value, torch.Tensor):
        if hasattr(value, "__tensor_flatten__") and not isinstance(value, DTensor):
            for name in value.__tensor_flatten__()[0]:
                yield from _leaves(getattr(value, name), f"{key}.{name}")
        else:
            yield key, value


class Optimizers:
    """The optimizers that together train a model: several where a method is for some parameters only.

    Every group holds its peak learning rate as ``peak``.
    """

    def __init__(
        self, members: list[torch.optim.Optimizer], description: Description, names: Mapping[int, str]
    ) -> None:
        """``names``: qualified name by the ``id`` of a parameter."""
        self.members, self.description, self.names = members, description, names
        self.parameters = [p for m in members for group in m.param_groups for p in group["params"]]
        touched = [m for m in members if isinstance(m, torch.optim.SparseAdam)]
        self.tables = [p for m in touched for group in m.param_groups for p in group["params"]]

    def keep(self, mine: Set[int]) -> None:
        """Leaves all parameters to other processes but those with these ``id``s; to be called before the first step."""
        for member in self.members:
            for group in member.param_groups:
                group["params"] = [p for p in group["params"] if id(p) in mine]
        self.parameters = [p for p in self.parameters if id(p) in mine]

    def set_learning_rate(self, factor: float) -> None:
        """Sets each group's learning rate to this fraction of its peak."""
        for member in self.members:
            for group in member.param_groups:
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].fill_(group["peak"] * factor)
                else:
                    group["lr"] = group["peak"] * factor

    def scale_gradients(self, factor: torch.Tensor) -> None:
        """Multiplies all gradients, at the latest in the next step: fused optimizers do it as they read them."""
        for member in self.members:
            own = [p for group in member.param_groups for p in group["params"]]
            in_parts = any(isinstance(p, DTensor) for p in own)
            if getattr(member, "_step_supports_amp_scaling", False) and not in_parts:
                member.grad_scale = factor.reciprocal()  # type: ignore[attr-defined]
            elif values := gradients(own):
                torch._foreach_mul_([world.local(value) for value in values], factor)

    def step(self, scaler: torch.amp.GradScaler) -> None:
        """Updates the weights unless the scaler found a gradient that is not finite; forgets the gradients."""
        for member in self.members:
            scaler.step(member)
            vars(member).pop("grad_scale", None)
        scaler.update()
        self.zero_grad()

    def unscale(self, scaler: torch.amp.GradScaler) -> None:
        """Divides the gradients by the factor that the loss was scaled with."""
        if scaler.is_enabled():
            for member in self.members:
                scaler.unscale_(member)

    def zero_grad(self) -> None:
        for member in self.members:
            member.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the weights in place that are meant to be used: the average of a schedule-free method."""
        switching: list[Any] = [m for m in self.members if hasattr(m, "eval")]
        for member in switching:
            member.eval()
        try:
            yield
        finally:
            for member in switching:
                member.train()

    def state_bytes(self) -> int:
        """Bytes of state that this process holds by now."""
        return sum(world.local(tensor).nbytes for tensor in self.tensors().values())

    def state_bytes_to_come(self) -> float:
        """Bytes of state that this process will hold."""
        adam = torch.optim.AdamW, torch.optim.SparseAdam
        return sum(
            (8 if isinstance(member, adam) else self.description.bytes_per_parameter) * world.local(p).numel()
            for member in self.members
            for group in member.param_groups
            for p in group["params"]
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of the state by ``parameter.name``, as plain ones or parts of such."""
        return {
            key: tensor
            for member in self.members
            for parameter, state in member.state.items()
            for name, value in state.items()
            for key, tensor in _leaves(value, f"{self.names[id(parameter)]}.{name}")
        }

    def scalars(self) -> dict[str, dict[str, Any]]:
        """The rest of the state by parameter, as JSON has it: its own counters and those of its group."""

        def plain(values: Mapping[str, Any]) -> dict[str, Any]:
            return {k: v for k, v in values.items() if k != "params" and not isinstance(v, torch.Tensor)}

        return {
            self.names[id(p)]: {"group": plain(group), "own": plain(member.state.get(p, {}))}
            for member in self.members
            for group in member.param_groups
            for p in group["params"]
        }

    def restore(self, scalars: Mapping[str, Mapping[str, Any]]) -> None:
        """Takes up what ``scalars`` returned, if need be of more parameters, and in other groups."""
        for member in self.members:
            for group in member.param_groups:
                for p in group["params"]:
                    saved = scalars[self.names[id(p)]]
                    group.update(saved["group"])
                    member.state[p].update(saved["own"])

    def prime(self) -> None:
        """Makes the state exist, whatever its types are, by a step that leads nowhere: for a saved one to be put in."""
        self.set_learning_rate(0.0)
        for member in self.members:
            sparse = isinstance(member, torch.optim.SparseAdam)
            for group in member.param_groups:
                for p in group["params"]:
                    p.grad = torch.zeros_like(p, layout=torch.sparse_coo if sparse else None)
            member.step()
        self.zero_grad()


def build(
    model: nn.Module, name: str, *, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> Optimizers:
    """Makes what trains a model.

    Embeddings with sparse gradients take Adam without decay on the rows that were touched (``torch.optim.SparseAdam``).

    Args:
        layer_decay: factor on the learning rate for each layer that a parameter is below the head
            (Howard & Ruder 2018, arXiv:1801.06146; Clark et al. 2020, arXiv:2003.10555).

    Raises:
        FeatherweightError: the optimizer is unknown, or its package is not installed.
    """
    description = describe(name)
    sparse = {
        id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse and m.weight.requires_grad
    }
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    num_layers = max((depth(n, -1) for n, _ in named), default=0)

    def groups(chosen: Callable[[str, nn.Parameter], bool]) -> list[dict[str, Any]]:
        found: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
        for n, p in named:
            if chosen(n, p):
                peak = learning_rate * layer_decay ** (num_layers + 1 - depth(n, num_layers))
                # One operation steps all of a group, and takes none that are whole beside parts of others.
                key = peak, weight_decay if p.ndim >= 2 else 0.0, isinstance(p, DTensor)
                found.setdefault(key, []).append(p)
        return [
            {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay}
            for (peak, decay, _), parameters in found.items()
        ]

    def mine(n: str, p: nn.Parameter) -> bool:
        if id(p) in sparse:
            return False
        return not description.matrices_only or (p.ndim == 2 and 0 < depth(n, num_layers) <= num_layers)

    members: list[torch.optim.Optimizer] = []
    if own := groups(mine):
        members.append(_class(description)(own, **description.options))
    if others := groups(lambda n, p: id(p) not in sparse and not mine(n, p)):
        members.append(torch.optim.AdamW(others, fused=True))
    if touched := groups(lambda _, p: id(p) in sparse):
        members.append(torch.optim.SparseAdam([{k: v for k, v in g.items() if k != "weight_decay"} for g in touched]))
    return Optimizers(members, description, {id(p): n for n, p in named})


def gradients(parameters: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    """The values of all gradients; those of a sparse one are made unique by row first."""
    found: list[torch.Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            found.append(parameter.grad.values())
        else:
            found.append(parameter.grad)
    return found


def total_norm(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Euclidean norm of all values together. On a CPU products are summed twice as fast as ``vector_norm`` does it."""
    if not values or values[0].device.type != "cpu":
        return nn.utils.get_total_norm(values)
    flat = [value.reshape(-1) for value in values]
    return torch.stack([torch.dot(value, value) for value in flat]).sum().sqrt()

"""Steps on the host, with parameters that are there already: which tensors are used, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tasks.contracts.base import FeatherweightError
from tasks.ml.training import offload, optimizers

X = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(16) % 2
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name == "adamw-8bit" else name
    for name, description in optimizers.OPTIMIZERS.items()
    if not description.schedule_free
]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(64, 64)]), "head": nn.Linear(64, 2)})


def built(model: nn.Module, name: str, *, on_host: bool) -> optimizers.Optimizers:
    rate = 1e-3 * optimizers.describe(name).learning_rate_factor
    found = optimizers.build(model, name, learning_rate=rate, weight_decay=0.01)
    for member in found.members if on_host else ():
        offload.step_on_host(member)
    return found


def train(model: Any, algorithm: optimizers.Optimizers, steps: int, *, scaled: bool = False) -> float:
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    for step in range(steps):
        algorithm.set_learning_rate(1 - step / steps)
        loss = nn.functional.cross_entropy(model["head"](model["layers"][0](X)), TARGETS)
        scaler.scale(loss).backward()
        if scaled and step == 3:
            model["head"].bias.grad.fill_(float("inf"))
        algorithm.unscale(scaler)
        torch._foreach_mul_(optimizers.gradients(algorithm.parameters), 0.5)
        algorithm.step(scaler)
    return loss.item()


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_it_learns_the_same_to_the_bit_clipped_and_scaled_gradients_included(name: str, scaled: bool) -> None:
    plain, moved = net(), net()
    expected = train(plain, built(plain, name, on_host=False), 10, scaled=scaled)
    assert train(moved, built(moved, name, on_host=True), 10, scaled=scaled) == expected < 1
    assert same(plain, moved)
    assert not same(moved, net())


def take_up(algorithm: optimizers.Optimizers, tensors: dict[str, torch.Tensor], scalars: list[dict[str, Any]]) -> None:
    algorithm.prime()
    for key, tensor in algorithm.tensors().items():
        tensor.copy_(tensors[key])
    algorithm.restore(scalars)


@pytest.mark.parametrize("name", NAMES)
def test_its_state_is_saved_and_restored_like_any_other(name: str) -> None:
    whole = net()
    algorithm = built(whole, name, on_host=True)
    train(whole, algorithm, 10)
    tensors = {key: tensor.clone() for key, tensor in algorithm.tensors().items()}
    scalars, weights = algorithm.scalars(), {key: value.clone() for key, value in whole.state_dict().items()}
    for on_host in (True, False):
        again = net()
        resumed = built(again, name, on_host=on_host)
        take_up(resumed, tensors, scalars)
        again.load_state_dict(weights)
        copied = net()
        copied.load_state_dict(weights)
        expected = built(copied, name, on_host=False)
        take_up(expected, tensors, scalars)
        assert train(again, resumed, 5) == train(copied, expected, 5)
        assert same(again, copied)


def test_a_step_never_touches_the_parameters_themselves() -> None:
    seen: list[torch.Tensor] = []
    parameters = list(net().parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    offload.step_on_host(optimizer)
    # Hooks run in the order of their making: this one sees what the step is about to change.
    optimizer.register_step_pre_hook(lambda *_: seen.extend(p for g in optimizer.param_groups for p in g["params"]))
    for parameter in parameters[1:]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert len(seen) == len(parameters)
    assert not {id(p) for p in seen} & {id(p) for p in parameters}
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in parameters]
    assert {id(p) for p in optimizer.state} == {id(p) for p in parameters[1:]}
    changed = [not torch.equal(a, b) for a, b in zip(parameters, net().parameters(), strict=True)]
    assert changed == [False, True, True, True]


def test_on_a_cpu_there_is_nothing_to_move() -> None:
    algorithm = optimizers.build(net(), "schedule-free-adamw", learning_rate=1e-3, weight_decay=0.0)
    assert offload.to_host(algorithm).startswith("none: on a CPU")


def test_a_schedule_free_optimizer_is_refused_elsewhere() -> None:
    algorithm = optimizers.build(net().to("meta"), "schedule-free-adamw", learning_rate=1e-3, weight_decay=0.0)
    with pytest.raises(FeatherweightError, match="offload_optimizer: a schedule-free optimizer"):
        offload.to_host(algorithm)
